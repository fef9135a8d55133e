"""Which networks of a sweep are in an ensemble, and in which order; what is wrong is named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from ensembling import row, write_results

from mnist_flax.config import Config
from mnist_flax.errors import InputError
from mnist_flax.sweep import directory
from mnist_flax.workdir import run_info
from mnist_flax.workdir.sweep_results import choose

DATA = {"image_shape": [28, 28, 1], "class_names": ["0", "1"], "train_examples": 9, "eval_examples": 9,
        "sha256": {"a": "1"}, "data_dir": "/data"}  # fmt: skip
ROWS = [
    row("selection", "members/0000", 0.90, l2=0.0, seed=0),
    row("selection", None, 0.10, l2=0.0, seed=1),  # was not kept
    row("selection", "members/0002", 0.80, l2=0.1, seed=0),
    row("selection", "members/0003", 0.80, l2=0.1, seed=1),
    row("selection", "members/0004", 0.85, "wide", width=9, seed=0),
    row("selection", "members/0005", 0.85, "wide", width=9, seed=0),  # a search may draw the same twice
    row("selection", None, None, l2=0.2, seed=0),  # diverged
    row("final", "final/0000", 0.1, l2=0.0, seed=1000),  # chosen before the search had more trials
    row("final", "final/0001", 0.9, l2=0.0, seed=1001),
    row("final", "final/0002", 0.2, "wide", width=9, seed=1000),
    row("final", "final/0003", None, "wide", width=9, seed=1001),  # diverged
    row("final", "final/0004", 0.8, l2=0.1, seed=1000),
    row("final", "final/0005", 0.9, l2=0.3, seed=1000),  # of a configuration without a validation score
]
# Their configurations have validation means of 0.85, 0.8, 0.5 and none: nothing looks at the final accuracies.
FINAL = ["final/0002", "final/0004", "final/0000", "final/0001", "final/0005"]
SELECTION = ["members/0000", "members/0004", "members/0002", "members/0003"]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_results(tmp_path / "sweep", ROWS)
    for each in ROWS:
        if each["workdir"]:
            write_config(tmp_path / "sweep" / each["workdir"])
    return tmp_path / "sweep"


def write_config(path: Path, dataset: str = "mnist", **changes: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    run_info.write(path, run_info.new(Config(dataset=dataset), DATA | changes))


@pytest.mark.parametrize(
    ("asked", "stage", "order"), [(None, "final", FINAL), ("final",) * 2 + (FINAL,), ("selection",) * 2 + (SELECTION,)]
)
def test_the_best_by_validation_come_first(asked: Any, stage: str, order: list[str], sweep: Path) -> None:
    for number in range(2, len(order) + 1):
        found, runs = choose(sweep, number, asked)
        assert found == stage and [*runs] == order[:number]
        assert all(run.data == DATA for run in runs.values())
    with pytest.raises(InputError, match=rf"ensemble={number + 1} is more than the {number} networks that the {stage}"):
        choose(sweep, number + 1, asked)


def test_without_a_final_test_the_networks_are_those_of_the_selection(sweep: Path) -> None:
    write_results(sweep, ROWS[:7])
    assert choose(sweep, 2, None)[0] == "selection"
    with pytest.raises(InputError, match="ensemble=2 is more than the 0 networks .*; raise FINAL_SEEDS and run"):
        choose(sweep, 2, "final")
    write_results(sweep, ROWS[:1])
    with pytest.raises(InputError, match="more than the 1 networks .*; begin another sweep with a larger KEEP"):
        choose(sweep, 2, None)


@pytest.mark.parametrize(
    ("dataset", "changes", "said"),
    [
        ("kmnist", {}, r"\(dataset differ\)"),
        ("mnist", {"sha256": {"a": "2"}}, r"\(sha256 differ\)"),
        ("mnist", {"class_names": ["0", "2"], "image_shape": [28, 28, 3]}, r"\(image_shape, class_names differ\)"),
    ],
)
def test_networks_of_other_data_are_refused(dataset: str, changes: dict[str, Any], said: str, sweep: Path) -> None:
    write_config(sweep / "final/0000", dataset, **changes)
    choose(sweep, 2, None)
    with pytest.raises(InputError, match=f"takes in final/0000, whose data is not that of final/0002 {said}"):
        choose(sweep, 3, None)


def test_a_network_that_is_not_here_is_named(sweep: Path) -> None:
    (sweep / "final/0000/config.json").unlink()  # trained on another host
    with pytest.raises(InputError, match="final/0000' is not a run"):
        choose(sweep, 3, None)


BAD_RESULTS = {
    "half": ('{"stage": "final"', "results.jsonl is damaged"),
    "a list": ("[]", r"results.jsonl is damaged \(line 1\)"),
    "no overrides": ('{"stage": "final", "method": "", "value": 1, "workdir": null}', r"is damaged \(line 1\)"),
    "elsewhere": (json.dumps(row("final", "../../secret", 0.5)), r"is damaged \(line 1\)"),
    "further below": (json.dumps(row("final", "final/0000/../../../x", 0.5)), r"is damaged \(line 1\)"),
    "an accuracy of 2": (json.dumps(row("final", "final/0000", 2.0)), r"is damaged \(line 1\)"),
    "deep": ("[" * 100_000, "is damaged"),
    "one too few": ("", "is not a sweep that is known to be finished; run the sweep's command again"),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_bad_results_are_refused(name: str, sweep: Path) -> None:
    text, said = BAD_RESULTS[name]
    write_results(sweep, ROWS, finished=1)
    (sweep / "results.jsonl").write_text(text)
    with pytest.raises(InputError, match=said) as error:
        choose(sweep, 2, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{half", "[]", "\0"])
def test_a_bad_sweep_json_is_refused(text: str, sweep: Path) -> None:
    (sweep / "sweep.json").write_text(text)
    with pytest.raises(InputError, match="damaged|known to be finished"):
        choose(sweep, 2, None)


def test_the_next_command_on_a_sweep_takes_back_that_it_is_finished(sweep: Path) -> None:
    identity = {"storage": "journal"}
    (sweep / "sweep.json").write_text(json.dumps(identity))
    for _ in range(2):
        with pytest.raises(InputError, match="known to be finished"):
            choose(sweep, 2, None)
        directory.mark_finished(sweep, len(ROWS))
        choose(sweep, 2, None)
        directory.create(sweep, identity)
    directory.mark_finished(sweep, len(ROWS) + 1)  # another process has written more results since
    with pytest.raises(InputError, match="known to be finished"):
        choose(sweep, 2, None)
