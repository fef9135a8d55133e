"""Settings: what their table says, and that checks, JSON and arrays follow it."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_flax.config import Config, Hyperparams, flatten, from_json, to_json
from mnist_flax.errors import InputError
from mnist_flax.settings import LATER, Between, Layers, Matches, Setting, settings_of
from mnist_flax.state import as_arrays
from mnist_flax.sweep.experiment import override

PACKAGE = Path(__file__).parents[1] / "mnist_flax"
SETTINGS = settings_of(Hyperparams) | settings_of(Config)
TEXTS = {  # of what each pattern allows
    "dataset": ["mnist", "emnist/digits", "mnist:3.0.1"],
    "train_split": ["train", "train[:50%]", "train[:10]+test[5:]"],
    "eval_split": ["test", "train[-10:]"],
}


def values_of(setting: Setting, chosen: dict[str, Any]) -> st.SearchStrategy:
    """Values that a setting's range or choices allow, next to what is chosen for others."""
    match setting.limit:
        case Between(low, high) if setting.kind is tuple:
            return st.lists(st.integers(int(low), int(high)), max_size=5).map(tuple)
        case Between(low, high):
            high = chosen[high] if isinstance(high, str) else high
            return st.integers(int(low), int(high)) if setting.kind is int else st.floats(low, high)
        case Layers(output) if last := len(chosen["widths"]) + output:
            return st.sets(st.integers(1, last)).map(tuple)
        case Layers():
            return st.just(())
        case Matches():
            return st.sampled_from(TEXTS[setting.name])
    return st.booleans() if setting.kind is bool else st.sampled_from(setting.choices)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any config, by the table of settings."""
    chosen: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        chosen[name] = draw(values_of(setting, chosen))
    hparams = Hyperparams(**{name: chosen.pop(name) for name in settings_of(Hyperparams)})
    return Config(hparams=hparams, **chosen)


@given(configs())
def test_json_round_trip(config: Config) -> None:
    assert from_json(json.loads(json.dumps(to_json(config))), "here") == config


FIELDS = [*SETTINGS, "hparams"]
LATER_FIELDS = [name for name, setting in SETTINGS.items() if LATER in setting.marks]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_read_outside_of_its_validation(name: str) -> None:
    reads = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "config.py":
            reads |= {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert name in reads


@pytest.mark.parametrize("name", LATER_FIELDS)
def test_a_field_that_came_later_may_be_missing(name: str) -> None:
    default = SETTINGS[name].default
    tree = to_json(Config())
    assert name not in tree | tree["hparams"] and flatten(from_json(to_json(Config()), "config.json"))[name] == default


def test_a_later_field_is_written_when_it_is_not_its_default() -> None:
    assert "precision" in LATER_FIELDS
    tree = to_json(Config(precision="bfloat16"))
    assert from_json(tree, "config.json").precision == tree["precision"] == "bfloat16"


def test_a_later_hyperparameter_is_left_out_and_overridden_at_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `l2` had come after the first version."""
    monkeypatch.setitem(settings_of(Hyperparams), "l2", SETTINGS["l2"]._replace(marks=frozenset({LATER})))
    old = to_json(Config())
    assert "l2" not in old["hparams"] and from_json(old, "config.json") == Config()
    assert override(from_json(old, "config.json"), {"l2": 0.5}) == Config(hparams=Hyperparams(l2=0.5))
    assert to_json(Config(hparams=Hyperparams(l2=0.5)))["hparams"]["l2"] == 0.5


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in LATER_FIELDS])
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


def test_flatten_names_every_flag() -> None:
    assert set(flatten(Config())) == set(SETTINGS)


def test_a_list_becomes_a_tuple() -> None:
    config = Config(widths=[512], batch_norm_layers=[], l2_layers=[1])  # type: ignore
    assert (config.widths, config.batch_norm_layers, config.l2_layers) == ((512,), (), (1,))
    assert hash(config.static()) == hash(Config(widths=(512,), batch_norm_layers=(), l2_layers=(1,)).static())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_allows(name: str) -> None:
    assert SETTINGS[name].limit or SETTINGS[name].choices or SETTINGS[name].kind is bool
    wrong: dict[str, Any] = {name: None}
    with pytest.raises(InputError, match=f"{name}=None is out of range; give "):
        Config(**({"hparams": Hyperparams(**wrong)} if name in settings_of(Hyperparams) else wrong))


def test_arrays_have_the_types_of_their_settings() -> None:
    for name, value in dataclasses.asdict(as_arrays(Hyperparams())).items():
        assert value.shape == () and value.dtype == (np.uint32 if SETTINGS[name].kind is int else np.float32)
