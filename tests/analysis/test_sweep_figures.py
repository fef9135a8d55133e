"""Figures by what they show: the numbers against numpy, the texts against each other, the files as images."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from mnist_flax.analysis.search_figures import Search
from mnist_flax.analysis.summaries import summarize
from mnist_flax.analysis.sweep_figures import sweep_drawings, sweep_figures

RNG = np.random.default_rng(0)


def row(value: float | None, stage: str = "selection", method: str = "", epochs: int = 3, **overrides: Any) -> dict:
    history = [
        {"epoch": epoch, "split": split, "accuracy": (0.9 if value is None else value) - 0.1 / epoch + 0.1 / epochs}
        for epoch in range(1, epochs + 1)
        for split in ("train", "eval")
    ]
    return {"stage": stage, "member": 0, "method": method, "overrides": overrides, "value": value,
            "history": history, "seconds": 1.0}  # fmt: skip


def grid(levels: dict[str, list], seeds: int = 2, **kwargs: Any) -> list[dict]:
    return [
        row(float(RNG.uniform(0.9, 0.99)), **kwargs, **dict(zip(levels, cell, strict=True)), seed=seed)
        for cell in itertools.product(*levels.values())
        for seed in range(seeds)
    ]


def mean(rows: list[dict], **overrides: Any) -> float:
    return float(
        np.mean([100 * r["value"] for r in rows if r["value"] and overrides.items() <= r["overrides"].items()])
    )


RATES, L2 = {"learning_rate": [0.01, 1e-4, 0.001, 0.1]}, {"l2": [0, 1e-5, 1e-4, 0.001, 0.01]}
LAYERS = {"batch_norm_layers": [[], [2], [1, 2]], "dropout_rate": [0, 0.2]}
FINAL = [row(value, "final", l2=0, seed=9 + i) for i, value in enumerate((0.97, 0.99, None))]
SEARCH = [
    row(
        float(RNG.uniform(0.9, 0.99)),
        learning_rate=10 ** float(RNG.uniform(-5, -1)),
        adam_epsilon=10 ** float(RNG.uniform(-9, -8)),
        l2=float(RNG.uniform()),
        schedule=str(RNG.choice(["constant", "cosine"])),
    )
    for _ in range(30)
]
SAMPLED = Search(
    importances={"learning_rate": 0.75, "l2": 0.25},
    logarithmic={"learning_rate": True, "adam_epsilon": True, "l2": False},
)
DIVERGED = [row(None, l2=l2, seed=9) for l2 in L2["l2"]]
METHODS = [*grid(L2, method="a rather long name of a method"), *grid(LAYERS, method="other"), row(None, method="lost")]
STOPPED = [
    row(0.5 + 0.01 * i, epochs=end, seed=i) | {"stopped": {"epoch": end, "rank": 9, "of": 9, "kept": 3}, "value": None}
    for i, end in enumerate((1, 1, 1, 3, 3))
]
HALVING = [*STOPPED, row(0.97, epochs=9, seed=5), row(0.98, epochs=9, seed=6)]


def ancestor(step: int, member: int, rate: float, smoothing: float = 0.1) -> dict:
    hparams = {"learning_rate": rate, "label_smoothing": smoothing, "l2": 0.1, "seed": member}
    return {"step": step, "member": f"{member:04d}", "hparams": hparams}


def lived(value: float | None, *lineage: dict) -> dict:
    found = row(value, epochs=6)
    return found | {
        "lineage": [*lineage],
        "history": [line | {"step": 10 * line["epoch"]} for line in found["history"]],
    }


POPULATION = [
    lived(0.97, ancestor(0, 1, 0.1), ancestor(40, 0, 0.08)),
    lived(0.98, ancestor(0, 1, 0.1), ancestor(20, 2, 0.001, 0.2), ancestor(50, 1, 0.002, 0.2)),
    lived(None, ancestor(0, 2, 0.5)),
]
CASES: dict[str, tuple[list[dict], bool, set[str]]] = {
    "one factor": (grid(RATES), False, {"curves", "factor"}),
    "one factor with a zero": ([*grid(L2), *DIVERGED, *FINAL], False, {"curves", "factor", "final"}),
    "one epoch": (grid(L2, epochs=1), False, {"factor"}),
    "two factors": ([*grid(RATES | L2, seeds=3), row(None, l2=0, learning_rate=0.1)], False, {"curves", "heatmap"}),
    "three factors": (grid(L2 | LAYERS), False, {"curves", "cells"}),
    "methods": ([*METHODS, row(0.9, "final", METHODS[0]["method"], l2=0.01)], False, {"curves", "cells", "final"}),
    "one configuration": ([row(0.9, seed=0), row(0.8, seed=1)], False, {"curves"}),
    "all diverged": ([row(None, l2=0), row(None, l2=1)], False, set()),
    "nothing": ([], False, set()),
    "search of two": (
        [row(0.0, l2=0.1), row(0.9, l2=0.2), row(0.5, l2=0.2)],
        True,
        {"curves", "parallel", "importance"},
    ),
    "search": (SEARCH, True, {"curves", "parallel", "importance"}),
    "halving": (HALVING, False, {"curves", "rungs"}),
    "population": (POPULATION, False, {"lineages"}),
}


@pytest.fixture(scope="module")
def drawings() -> Callable[[str], dict[str, Figure]]:
    """The figures of a case, drawn once."""
    known: dict[str, dict[str, Figure]] = {}

    def draw(case: str) -> dict[str, Figure]:
        rows, searched, _ = CASES[case]
        if case not in known:
            known[case] = sweep_drawings(rows, SAMPLED if searched else None)
        return known[case]

    return draw


@pytest.mark.parametrize("case", CASES)
def test_only_what_makes_sense_is_drawn(case: str, drawings: Callable[[str], dict[str, Figure]]) -> None:
    assert drawings(case).keys() == CASES[case][2]


@pytest.mark.parametrize(
    "case", ["one factor with a zero", "two factors", "methods", "search", "halving", "population"]
)
def test_texts_are_whole_and_apart(case: str, drawings: Callable[[str], dict[str, Figure]]) -> None:
    for name, figure in drawings(case).items():
        figure.canvas.draw()
        boxes = boxes_of(figure)
        page = figure.bbox.padded(1)
        assert len(boxes) > 4, name
        for text, box in boxes:
            assert page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1, (name, text)
        for (text, box), (other, another) in itertools.combinations(boxes, 2):
            assert not box.padded(-1).overlaps(another.padded(-1)), (name, text, other)


def boxes_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is seen, and where, in pixels."""
    unseen = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                unseen |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text not in unseen]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text().strip()]


def test_files_are_pngs(tmp_path: Path) -> None:
    rows, searched, _ = CASES["search"]
    paths = sweep_figures(tmp_path, [*rows, *FINAL], SAMPLED if searched else None)
    assert [path.name for path in paths] == ["curves.png", "parallel.png", "importance.png", "final.png"]
    assert set(tmp_path.iterdir()) == set(paths)  # no scratch file stays
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert 600 < image.width < 1800 and 200 < image.height < 1200


def test_curves_show_the_best_eight(drawings: Callable[[str], dict[str, Figure]]) -> None:
    figure, rows = drawings("two factors")["curves"], CASES["two factors"][0]
    assert figure.get_suptitle() == "Best 8 of 20 configurations, with 95 % bands; 1 diverged member left out"
    lines = figure.axes[0].get_lines()[1:]  # the first is the legend's header
    means = [mean(rows, learning_rate=rate, l2=l2) for rate in RATES["learning_rate"] for l2 in L2["l2"]]
    ends = [np.asarray(line.get_ydata(), float)[-1] for line in lines]
    assert ends == pytest.approx(sorted(means)[:-9:-1])
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3]] * 8
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 8
    assert len(figure.axes[0].collections) == 8
    of_two_seeds = drawings("one factor")["curves"]  # whose interval would be wider than the figure
    assert not of_two_seeds.axes[0].collections and "band" not in of_two_seeds.get_suptitle()


def test_curves_show_the_best_of_each_method(drawings: Callable[[str], dict[str, Figure]]) -> None:
    figure = drawings("methods")["curves"]
    assert figure.get_suptitle() == "Best configuration of each method; 1 diverged member left out"
    ends = [float(np.asarray(line.get_ydata())[-1]) for line in figure.axes[0].get_lines()[1:]]
    best = [
        max(s.mean or 0 for s in summarize(METHODS) if s.method == method) for method in {r["method"] for r in METHODS}
    ]
    assert ends == pytest.approx(sorted((100 * mean for mean in best if mean), reverse=True))


def test_one_factor_is_a_line_on_a_log_axis(drawings: Callable[[str], dict[str, Figure]]) -> None:
    axes, rates = drawings("one factor")["factor"].axes[0], sorted(RATES["learning_rate"])
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "learning rate (log scale)"
    assert axes.get_ylabel() == "validation accuracy (%)"
    [line] = axes.get_lines()
    assert list(line.get_xdata()) == rates
    assert list(line.get_ydata()) == pytest.approx([mean(CASES["one factor"][0], learning_rate=r) for r in rates])


def test_a_zero_makes_categories(drawings: Callable[[str], dict[str, Figure]]) -> None:
    figure, rows = drawings("one factor with a zero")["factor"], CASES["one factor with a zero"][0][:10]
    title = figure.get_suptitle().replace("\n", " ")
    assert title.startswith("Mean and 95 % interval; 5 diverged members left out (1 at ") and "1 at 0.01" in title
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1e-05", "0.0001", "0.001", "0.01"]
    means = [mean(rows, l2=l2) for l2 in L2["l2"]]
    assert list(axes.get_lines()[0].get_ydata()) == pytest.approx(means)
    curves = drawings("one factor with a zero")["curves"].axes[0].get_lines()[1:]
    assert [float(np.asarray(line.get_ydata())[-1]) for line in curves] == pytest.approx(sorted(means, reverse=True))


def test_the_heatmap_says_its_numbers(drawings: Callable[[str], dict[str, Figure]]) -> None:
    axes, rows = drawings("two factors")["heatmap"].axes[0], CASES["two factors"][0]
    shown = {text.get_position(): text for text in axes.texts}
    assert len(shown) == 20
    for (y, rate), (x, l2) in itertools.product(enumerate(sorted(RATES["learning_rate"])), enumerate(L2["l2"])):
        diverged = "\n1 diverged" if (rate, l2) == (0.1, 0) else ""
        assert shown[x, y].get_text() == f"{mean(rows, learning_rate=rate, l2=l2):.2f}{diverged}"
    assert {text.get_color() for text in axes.texts} == {"black", "white"}


def test_cells_have_the_best_on_top(drawings: Callable[[str], dict[str, Figure]]) -> None:
    axes, rows = drawings("methods")["cells"].axes[0], [r for r in METHODS if r["value"]]
    points = axes.get_lines()[0]
    groups = [[100 * a["value"], 100 * b["value"]] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert list(points.get_xdata()) == pytest.approx(sorted(map(np.mean, groups), reverse=True))
    assert axes.yaxis_inverted() and list(points.get_ydata()) == list(range(11))
    assert len({len(label.get_text()) for label in axes.get_yticklabels()}) == 1
    header, *labels = (label.get_text().split() for label in axes.get_yticklabels())
    assert header == ["method", "l2", "batch_norm_layers", "dropout_rate", "n", "diverged"]
    assert len(labels) == 12 and labels[-1] == ["lost", "base", "base", "base", "0", "1"]


def test_the_best_of_a_search_lies_on_top(drawings: Callable[[str], dict[str, Figure]]) -> None:
    axes = drawings("search")["parallel"].axes[0]
    [lines] = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    ordered = sorted(SEARCH, key=lambda r: r["value"])
    paths = np.array([path.vertices for path in lines.get_paths()])  # [30, 5, 2]
    rates = np.log10([r["overrides"]["learning_rate"] for r in ordered])
    np.testing.assert_allclose(paths[:, 0, 1], (rates - rates.min()) / np.ptp(rates), atol=1e-12)
    l2 = np.array([r["overrides"]["l2"] for r in ordered])
    np.testing.assert_allclose(paths[:, 2, 1], (l2 - l2.min()) / np.ptp(l2), atol=1e-12)
    assert paths[:, 3, 1].tolist() == [float(r["overrides"]["schedule"] == "cosine") for r in ordered]
    values = np.array([100 * r["value"] for r in ordered])
    clipped = np.maximum(values, values[2])  # the worst tenth shares the end of the axis
    np.testing.assert_allclose(paths[:, 4, 1], (clipped - values[2]) / (values[-1] - values[2]), atol=1e-12)
    np.testing.assert_allclose(np.asarray(lines.get_array()), clipped)
    labels = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    logarithmic = ["learning rate (log scale)", "adam epsilon (log scale)"]
    assert labels == [*logarithmic, "l2", "schedule", "validation accuracy (%)"]


def test_importances_are_bars(drawings: Callable[[str], dict[str, Figure]]) -> None:
    axes = drawings("search")["importance"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["l2", "learning rate"]  # from below
    assert [text.get_text() for text in axes.texts] == ["25.0", "75.0"]


def test_final_shows_validation_and_test(drawings: Callable[[str], dict[str, Figure]]) -> None:
    figure = drawings("one factor with a zero")["final"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["l2=0; 1 diverged member left out"]
    [label] = drawings("methods")["final"].axes[0].get_yticklabels()
    assert label.get_text() == "a rather long name of a method"
    at = {}
    for container in figure.axes[0].containers:
        at[container.get_label()] = float(container.lines[0].get_xdata()[0])
    rows = [r for r in CASES["one factor with a zero"][0] if r["overrides"]["l2"] == 0]
    assert at == pytest.approx({"validation": mean(rows[:2]), "test": mean(rows[2:])})
    seeds = [sorted(line.get_xdata()) for line in figure.axes[0].get_lines() if line.get_markersize() == 3]
    assert seeds == [pytest.approx(sorted(100 * r["value"] for r in rows[:2])), pytest.approx([97, 99])]


def test_imports_wait_and_pyplot_never_comes(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
import mnist_flax.analysis.sweep_figures as figures
assert not {{"matplotlib", "scipy", "jax"}} & sys.modules.keys()
line = {{"epoch": 1, "split": "eval", "accuracy": 0.5}}
row = {{"stage": "selection", "method": "", "value": 0.5, "history": [line, line | {{"epoch": 2}}], "seconds": 0}}
figures.sweep_figures(pathlib.Path({str(tmp_path)!r}), [row | {{"overrides": {{"l2": i}}}} for i in (0, 1)])
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "factor.png"}


def test_rungs_show_every_member_to_its_end(drawings: Callable[[str], dict[str, Figure]]) -> None:
    figure = drawings("halving")["rungs"]
    assert figure.get_suptitle() == "Of 7 members stopped 3 after epoch 1, 2 after epoch 3; 2 are done"
    lines = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines]
    for each in HALVING:
        accuracy = [line["accuracy"] for line in each["history"] if line["split"] == "eval"]
        curve = np.column_stack([range(1, 1 + len(accuracy)), 100 - 100 * np.array(accuracy)])
        assert sum(line.shape == curve.shape and np.allclose(line, curve) for line in lines) >= 1
        end = [line.get_marker() for line in figure.axes[0].lines if np.allclose(line.get_xydata(), curve[-1:])]
        assert ("x" if "stopped" in each else "o") in end


def test_lineages_show_every_ancestor(drawings: Callable[[str], dict[str, Figure]]) -> None:
    figure = drawings("population")["lineages"]
    assert figure.get_suptitle().endswith("3 members come from (thick: those of the best, copied 2 times)")
    tree, rate, smoothing = figure.axes  # and none for l2, which never changes
    for axes, values in ((tree, [1, 2, 1]), (rate, [0.1, 0.001, 0.002]), (smoothing, [0.1, 0.2, 0.2])):
        assert len(axes.lines) == 3
        x, y = np.asarray(axes.lines[-1].get_xydata()).T  # the best is drawn last
        np.testing.assert_allclose(x, [0, 2, 2, 5, 5, 6])
        np.testing.assert_allclose(y, np.repeat(values, 2))
        assert axes.lines[-1].get_linewidth() > max(line.get_linewidth() for line in axes.lines[:-1])
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
