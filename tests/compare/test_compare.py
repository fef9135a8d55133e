"""`python -m mnist_flax.compare exp1 exp2 ...` tells what differs, scores the networks, and tests the difference."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image

import mnist_flax
from mnist_flax.compare import __main__ as command
from mnist_flax.compare import comparison, evaluation, figure, report, runs
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import datasets
from mnist_flax.process import cli
from mnist_flax.sweep import members
from mnist_flax.workdir import run_info

HPARAMS = {f"a{seed}": Hyperparams(seed=seed) for seed in (0, 1, 2)}
HPARAMS |= {f"b{seed}": Hyperparams(seed=seed, learning_rate=0.01) for seed in (0, 1, 3)}
HPARAMS["c0"] = Hyperparams(dropout_rate=0.0)


@dataclasses.dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Run:
    """`python -m mnist_flax.compare ...` in this process, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*args: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mnist_flax.compare", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main(command.Args, command.run)
        return Result(int(exit_.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def exps(dataset: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven runs, trained as one population: three seeds each of a and b, which share two; and c. Read only."""
    path, opened = tmp_path_factory.mktemp("exps"), []
    for name, hparams in HPARAMS.items():
        config = Config(
            hparams=hparams, widths=(8, 8), batch_size=50, epochs=2, train_split="train[:400]", eval_split="test[:150]"
        )
        info = datasets.dataset_info(dataset, config.train_split, config.eval_split, datasets.default_data_dir())
        (path / name).mkdir()
        run_info.write(path / name, ours := run_info.new(config, info))
        opened.append(members.open_member(path / name, ours, pytest.fail))
    data = dataset.read("train[:400]"), dataset.read("test[:150]")
    *_, last = members.train(opened, *data, needs_state=lambda: False)
    members.save(opened, opened, last)
    return path


def hits(path: Path, dataset: datasets.Dataset, split: str) -> np.ndarray:
    model, variables = mnist_flax.load(path)
    images, labels = dataset.read(split)
    return np.asarray(model.apply(variables, images)).argmax(axis=1) == labels


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*") if p.is_file()}


def test_two_runs(exps: Path, dataset: datasets.Dataset, run: Run) -> None:
    before = contents(exps)
    about = run(exps / "a0", exps / "b0", "--split", "test[:300]", "--json").json
    a, b = (hits(exps / name, dataset, "test[:300]") for name in ("a0", "b0"))
    [test] = about["tests"]
    assert about["test"] == "mcnemar" and (test["only_first"], test["only_second"]) == ((a & ~b).sum(), (b & ~a).sum())
    assert test["p"] == test["p_holm"] == scipy.stats.binomtest(test["only_first"], int((a ^ b).sum())).pvalue
    for row, right in zip(about["runs"], (a, b), strict=True):
        assert (row["correct"], row["examples"], row["step"], row["epochs"]) == (right.sum(), 300, 16, 2)
        lines = map(json.loads, Path(row["directory"], "metrics.jsonl").read_text().splitlines())
        assert row["seconds"] == pytest.approx(sum(line["seconds"] for line in lines if line["split"] == "train"))
    assert [row["settings"] for row in about["runs"]] == [{"learning_rate": 0.001}, {"learning_rate": 0.01}]
    assert about["same"]["widths"] == [8, 8] and not about["groups"] and not about["notes"]
    printed = run(exps / "a0", exps / "b0", "--split", "test[:300]")
    assert (printed.code, printed.err) == (0, "")
    p = f"{test['p']:.4f}" if test["p"] >= 0.0001 else f"{test['p']:.1e}"
    counts = f"a0 alone right: {test['only_first']}, b0 alone right: {test['only_second']}"
    assert f"McNemar's exact test: p = {p} ({counts})\n" in printed.out
    assert re.search(r"a0 +0\.001\nb0 +0\.01\n", printed.out) and "mnist test[:300], 300 examples" in printed.out
    assert contents(exps) == before


def test_each_run_is_evaluated_as_evaluate_does(exps: Path, run: Run) -> None:
    """On the evaluation split, whose last line of metrics.jsonl has the same accuracy."""
    about = run(exps / "a0", exps / "c0", "--step", "best", "--json").json
    for row in about["runs"]:
        [line] = [x for x in map(json.loads, Path(row["directory"], "metrics.jsonl").read_text().splitlines())
                  if (x["split"], x["step"]) == ("eval", row["step"])]  # fmt: skip
        assert row["accuracy"] == line["accuracy"]
        assert row["cross_entropy"] == pytest.approx(line["cross_entropy"], rel=1e-5)


def test_groups_over_seeds(exps: Path, run: Run, capsys: pytest.CaptureFixture) -> None:
    names = ["a0", "a1", "a2", "b0", "b1", "b3", "c0"]
    about = run(*(exps / name for name in names), "--json").json
    correct = {row["name"]: row["correct"] for row in about["runs"]}
    assert [(g["group"], g["runs"]) for g in about["groups"]] == [("A", names[:3]), ("B", names[3:6]), ("C", ["c0"])]
    [test] = about["tests"]
    want = scipy.stats.ttest_rel([correct["a0"], correct["a1"]], [correct["b0"], correct["b1"]])
    assert (about["test"], test["first"], test["second"], test["seeds"]) == ("paired_t", "A", "B", 2)
    assert test["p"] == pytest.approx(want.pvalue)
    assert (test["low"], test["high"]) == pytest.approx([x / 1.5 for x in want.confidence_interval(0.95)])
    assert test["seeds_left_out"] == {"A": [2], "B": [3]}
    assert about["notes"] == ["not tested, as they share fewer than two seeds: A and C, B and C"]
    capsys.readouterr()
    report.print_comparison(about)
    printed = capsys.readouterr().out
    assert "Left out: A's seed 2, not in B\nLeft out: B's seed 3, not in A\n" in printed
    assert "a hint" in printed and f"{test['difference']:+.3f}" in printed
    tables = [line for line in printed.splitlines() if re.match(r"(run|group|groups|[abcABC]\d?)  ", line)]
    assert len(tables) > 20 and max(map(len, tables)) <= 80


def made(name: str, correct: list[int], seeds: list[int], **settings: Any) -> tuple[dict, dict]:
    """Runs with these numbers of correct answers among 1000."""
    info = run_info.RunInfo(Config(), {}, {})
    last = {"epoch": 4, "split": "eval", "accuracy": 0.9, "cross_entropy": 0.3, "seconds": 1.0}
    all_runs, scores = {}, {}
    for seed, count in zip(seeds, correct, strict=True):
        config = Config(hparams=Hyperparams(seed=seed, **settings))
        all_runs[f"{name}{seed}"] = runs.Run(
            Path(f"/{name}{seed}"), dataclasses.replace(info, config=config), [last], False
        )
        about = {"correct": count, "examples": 1000, "accuracy": count / 1000, "dataset": "mnist", "split": "test"}
        scores[f"{name}{seed}"] = evaluation.Evaluation(about, np.arange(1000) < count, ("test",))
    return all_runs, scores


def compared(*parts: tuple[dict, dict]) -> dict[str, Any]:
    both = {}, {}
    for part in parts:
        both[0].update(part[0])
        both[1].update(part[1])
    return comparison.compare(*both)


def test_equal_differences_are_told_and_leave_the_others_to_holm(capsys: pytest.CaptureFixture) -> None:
    seeds = [1, 2, 3]
    about = compared(
        made("a", [900, 910, 905], seeds),
        made("b", [890, 900, 895], seeds, l2=0.1),
        made("c", [880, 903, 899], seeds, l2=0.2),
    )
    equal, *others = about["tests"]
    assert (equal["difference"], equal["p"], equal["p_holm"]) == (1.0, None, None)
    p, p_holm = zip(*((test["p"], test["p_holm"]) for test in others), strict=True)
    assert sorted(p_holm) == pytest.approx(sorted([2 * min(p), max(2 * min(p), max(p))]))
    for row in about["runs"]:
        row |= {"step": 9, "accuracy_interval": [0.8, 1.0], "cross_entropy": 0.3, "epochs": 1, "seconds": 1.0}
    report.print_comparison(about)
    printed = capsys.readouterr().out
    assert re.search(r"A - B +3 +\+1.000  all are equal +-", printed) and "nan" not in printed


def test_pairs_have_limits() -> None:
    few = [made(f"{i}-", [900 + i], [0], l2=i / 10) for i in range(11)]
    pairs = compared(*few[:10])
    assert pairs["test"] == "mcnemar" and len(pairs["tests"]) == 45
    assert max(test["p_holm"] for test in pairs["tests"]) == 1
    many = compared(*few)
    assert not many["tests"] and many["notes"] == [
        "more than 10 runs, no two of which differ in their seed alone: pairs are not tested"
    ]
    alone = compared(made("a", [900, 910, 905], [1, 2, 3]))
    assert not alone["tests"] and alone["groups"][0]["mean"] == pytest.approx(0.905)
    [test] = compared(made("a", [900, 910], [1, 2]))["tests"]
    assert test["p"] == scipy.stats.binomtest(0, 10).pvalue  # two runs: of these networks, not of their settings


def test_first_weights_and_changes_of_hyperparameters_are_settings() -> None:
    """Else a run that was begun with another's weights would be one more seed of those with random ones."""
    infos = [run_info.RunInfo(Config(hparams=Hyperparams(seed=seed)), {}, {}) for seed in (0, 1)]
    began = [dataclasses.replace(each, initial={"sha256": "a" * 64}) for each in infos]
    changed = [
        dataclasses.replace(each, hparams_by_step={0: each.config.hparams, 9: Hyperparams(l2=0)}) for each in infos
    ]
    settings = {}
    for number, each in enumerate([*infos, *began, *changed]):
        settings[f"{number}"] = runs.Run(Path("x"), each, [], False).settings
    assert comparison._group(settings) == {"A": ["0", "1"], "B": ["2", "3"], "C": ["4", "5"]}
    assert runs.differing([*settings.values()]) == ["seed", "init_from", "hparams_by_step"]
    assert runs.unusual(settings["2"]) == {"init_from": "a" * 12}


def test_the_mean_of_a_group_counts_a_seed_once() -> None:
    settings = {name: {"seed": seed} for name, seed in (("a", 0), ("copy", 0), ("b", 1))}
    scores = {"a": 0.5, "copy": 0.5, "b": 0.7}
    tested: Any = {name: evaluation.Evaluation({"accuracy": score}, np.ones(1), ()) for name, score in scores.items()}
    [group] = comparison._groups({"A": ["a", "copy", "b"]}, settings, [], tested)
    assert group["runs"] == ["a", "b"] and group["mean"] == pytest.approx(0.6)


def test_a_seed_counts_once() -> None:
    again = made("again", [700], [2])
    about = compared(made("a", [900, 910], [1, 2]), made("b", [890, 905], [1, 2], l2=0.1), again)
    assert about["tests"][0]["difference"] == pytest.approx(0.75)
    assert about["notes"] == ["again2 has the settings and the seed of a2, which alone is in the tests"]


def test_other_examples_are_listed_and_not_tested(
    exps: Path, finished: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(exps / "a1", tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "checkpoints")
    (tmp_path / "begun" / "metrics.jsonl").unlink()
    about = run(exps / "a0", finished, exps / "b0", tmp_path / "begun", "--json").json
    assert [row["not_tested"] for row in about["runs"]] == [
        None, "its examples, of mnist test[:203], are not those of mnist test[:150]", None, "has no checkpoint yet"
    ]  # fmt: skip
    assert about["notes"][-1] == "begun is stopped: 0 of 2 epochs are done"
    [test] = about["tests"]
    assert (test["first"], test["second"]) == ("a0", "b0") and about["runs"][1]["examples"] == 203
    report.print_comparison(about)
    printed = capsys.readouterr().out
    assert "On mnist test[:203], 203 examples:" in printed and "begun is not tested: has no checkpoint yet" in printed
    same = run(exps / "a0", finished, "--split", "test[:203]", "--json").json
    assert len(same["tests"]) == 1 and not same["notes"]
    seen = run(exps / "a0", exps / "b0", "--split", "train[350:450]", "--json").json
    assert seen["notes"] == ["a0, b0: trained on examples of this split, so the accuracy says little"]


def test_the_figure(exps: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(exps / "c0", tmp_path / "_$x$ [red]")  # matplotlib and rich would take these for their own
    out = tmp_path / "curves.png"
    result = run(exps / "a0", tmp_path / "_$x$ [red]", "--out", out)
    assert result.code == 0 and f"The curves are in {out}" in result.out and "\n_$x$ [red]" in result.out, result.err
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width == 1350
    paths = [exps / "a0", exps / "a1", exps / "b0", tmp_path / "_$x$ [red]"]
    drawn = figure.curves(dict(zip(runs.short_names(paths), map(runs.read, paths), strict=True)))
    texts = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert texts == {
        "learning_rate=0.001, dropout_rate=0.2 (2 runs: a0, ...)",
        "b0: learning_rate=0.01, dropout_rate=0.2, seed=0",
        "_$x$ [red]: learning_rate=0.001, dropout_rate=0, seed=0",
    }
    [pair] = [line for line in drawn.axes[0].get_lines() if line.get_color() == line_color(drawn, "(2 runs")]
    accuracies = [[line["accuracy"] for line in runs.read(path).evaluations] for path in paths[:2]]
    np.testing.assert_allclose(pair.get_ydata(), 100 * np.mean(accuracies, axis=0))


def line_color(drawn: Any, text: str) -> str:
    legend = drawn.legends[0]
    return next(
        h.get_color() for h, t in zip(legend.get_lines(), legend.get_texts(), strict=True) if text in t.get_text()
    )


def test_a_run_before_its_first_epoch_is_drawn_as_nothing(exps: Path, tmp_path: Path) -> None:
    shutil.copytree(exps / "a1", tmp_path / "begun")
    (tmp_path / "begun" / "metrics.jsonl").unlink()
    found = {path.name: runs.read(path) for path in (exps / "a0", tmp_path / "begun")}
    assert len(figure.curves(found).axes[0].get_lines()) == 1  # a mean over no epoch


def test_names_are_as_short_as_they_can_be() -> None:
    names = runs.short_names([Path("/x/s/members/01"), Path("/x/t/members/01"), Path("/x/exp1")])
    assert names == ["s/members/01", "t/members/01", "exp1"]
    assert runs.short_names([Path("/x/s/members/01"), Path("/x/exp1")]) == ["01", "exp1"]


MISTAKES = {
    "a0": "runs='{exps}/a0' is one run; give two or more, or a directory that holds runs",
    "a0 a0/": "runs='{exps}/a0' is given twice; give each run once",
    "a0 nothing": "runs='{exps}/nothing' does not exist; give a run's directory",
    "a0 a0/config.json": "runs='{exps}/a0/config.json' is not a directory; give a run's directory",
    "a0 a0/checkpoints": "runs='{exps}/a0/checkpoints' is not a run (it has no config.json); give runs only",
    "a0 b0 --split tests": "split='tests' is not a split of this dataset",
    "a0 b0 --step 999": "step=999 has no checkpoint in {exps}/a0/checkpoints; give latest, best or one of: 16",
    "a0 b0 --step newest": "step='newest' is not a checkpoint; give latest, best or a number of finished steps",
    "a0 b0 --out x.pdf": "out='x.pdf' is not the name of a PNG file; give one ending in .png",
    "a0 b0 --out nowhere/x.png": "out='nowhere/x.png' cannot be written: nowhere is not a directory",
    "a0/checkpoints": "runs='{exps}/a0/checkpoints' holds no run, and is none; give runs, or a directory",
    "a0/checkpoints --out x.png": "out='x.png' is for a comparison, and {exps}/a0/checkpoints is not a run",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words: str, exps: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, flags = contents(exps), words.find("--") % (len(words) + 1)
    result = run(*(exps / name for name in words[:flags].split()), *words[flags:].split())
    [line] = result.err.splitlines()
    assert result.code == 2 and line.startswith("error: " + MISTAKES[words].replace("{exps}", str(exps))), line
    assert contents(exps) == before


def test_nothing_to_evaluate(exps: Path, run: Run, tmp_path: Path) -> None:
    assert run().err == "error: runs is empty; give the directories of two runs, or one that holds runs\n"
    for name in ("x", "y"):
        shutil.copytree(exps / "a1", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints")
    result = run(tmp_path / "x", tmp_path / "y", "--json")
    want = "error: none of the runs can be evaluated: x has no checkpoint yet; y has no checkpoint yet\n"
    assert (result.code, result.out, result.err) == (2, "", want)


def test_a_damaged_checkpoint_is_told_and_the_others_are_compared(exps: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(exps / "a1", tmp_path / "bad")
    (tmp_path / "bad" / "checkpoints" / "16" / "SHA256SUMS").write_text("")
    result = run(exps / "a0", exps / "b0", tmp_path / "bad", "--json")
    assert result.code == 0 and len(result.json["tests"]) == 1
    assert "no sound checkpoint is left" in result.json["runs"][2]["not_tested"]
