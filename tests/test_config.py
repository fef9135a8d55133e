import ast
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_flax.config import Config, Hyperparams, flatten, from_json, to_json
from mnist_flax.errors import InputError

PACKAGE = Path(__file__).parents[1] / "mnist_flax"
unit = st.floats(0, 0.999999)

configs = st.builds(
    Config,
    hparams=st.builds(
        Hyperparams,
        learning_rate=st.floats(1e-9, 1e3), l2=st.floats(0, 10), max_norm=st.floats(1e-9, 10),
        dropout_rate=unit, label_smoothing=unit, b1=unit,
        b2=st.floats(1e-6, 0.999999), seed=st.integers(0, 2**32 - 1),
    ),
    widths=st.lists(st.integers(1, 65536), min_size=3, max_size=5).map(tuple),
    batch_norm_layers=st.sets(st.integers(1, 3)).map(tuple),
    l2_layers=st.sets(st.integers(1, 4)).map(tuple),
    max_norm_layers=st.sets(st.integers(1, 4)).map(tuple),
    adam_epsilon=st.floats(1e-12, 1),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup_epochs=st.floats(0, 1),
    batch_size=st.integers(1, 2**20),
    epochs=st.integers(1, 10**6),
    dataset=st.sampled_from(["mnist", "emnist/digits", "mnist:3.0.1"]),
    train_split=st.sampled_from(["train", "train[:50%]", "train[:10]+test[5:]"]),
    keep=st.integers(1, 99),
)  # fmt: skip


@given(configs)
def test_json_round_trip(config: Config) -> None:
    assert from_json(json.loads(json.dumps(to_json(config))), "here") == config


FIELDS = [f.name for f in (*dataclasses.fields(Hyperparams), *dataclasses.fields(Config))]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_read_outside_of_its_validation(name: str) -> None:
    reads = set()
    for path in PACKAGE.glob("*.py"):
        if path.name != "config.py":
            reads |= {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert name in reads


def test_a_field_that_came_later_may_be_missing() -> None:
    assert "precision" not in to_json(Config()) and from_json(to_json(Config()), "config.json").precision == "float32"
    tree = to_json(Config(precision="bfloat16"))
    assert from_json(tree, "config.json").precision == tree["precision"] == "bfloat16"


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "precision"])
def test_json_lacking_a_field_is_refused(name: str) -> None:
    tree = to_json(Config())
    del (tree if name in tree else tree["hparams"])[name]
    with pytest.raises(InputError, match=f"lacks field {name}"):
        from_json(tree, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4.0}, "epochs=4.0 has the wrong type"),
        ({"epochs": True}, "epochs=True has the wrong type"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"widths": "512"}, "widths='512' has the wrong type"),
        ({"widths": [512.5]}, r"widths=\(512.5,\) is out of range"),
        ({"colour": 1}, "unknown field colour"),
        ({"dataset": "../../etc"}, "dataset='../../etc' is out of range"),
        ({"hparams": []}, "hparams=.* has the wrong type"),
        ({"schedule": "step"}, "schedule='step' is out of range"),
        ({"train_split": "train; rm -rf"}, "train_split"),
    ],
)
def test_json_is_as_strict_as_the_command_line(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_json(to_json(Config()) | change, "config.json")


def test_flat_names_every_flag() -> None:
    assert set(flatten(Config())) == set(FIELDS) - {"hparams"}
