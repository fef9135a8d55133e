"""Draw what only a sweep with `ADAPT` has: the rungs of a halving, and the lineages of a population."""

from typing import TYPE_CHECKING, Any

from mnist_flax.analysis.labels import scale_of, spoken
from mnist_flax.analysis.summaries import Row
from mnist_flax.figures.axes import COLORS, open_figure, open_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rungs(rows: list[Row]) -> "Figure | None":
    """Each member's validation error by epoch, to where it stopped; None if no member did."""
    rows = [row for row in rows if row["stage"] == "selection"]
    stopped, curves = [row for row in rows if row.get("stopped")], [(row, _errors(row)) for row in rows]
    if not stopped:
        return None
    ends = sorted({row["stopped"]["epoch"] for row in stopped})
    gone = ", ".join(f"{sum(row['stopped']['epoch'] == end for row in stopped)} after epoch {end}" for end in ends)
    done = sum(row["value"] is not None for row in rows)
    diverged = len(rows) - len(stopped) - done
    title = f"Of {len(rows)} members stopped {gone}; {done} are done" + f", {diverged} diverged" * (diverged > 0)
    figure, axes = open_figure(title, 6.5, 4.5)
    for row, errors in sorted(curves, key=lambda curve: curve[0]["value"] is not None):  # the survivors on top
        survives = row["value"] is not None
        style: dict[str, Any] = (
            {"color": COLORS[2], "linewidth": 1.3} if survives else {"color": "0.6", "linewidth": 0.8}
        )
        axes.plot(range(1, len(errors) + 1), errors, **style)
        axes.plot(
            len(errors), errors[-1:] or [float("nan")], "o" if survives else "x", color=style["color"], markersize=4
        )
    for end in ends:
        axes.axvline(end, color="0.3", linewidth=0.8, linestyle=":")
    for label, marker, color in (("done", "o-", COLORS[2]), ("stopped", "x-", "0.6")):
        axes.plot([], [], marker, color=color, label=label)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="epoch (dotted: rungs)", ylabel="validation error (%, log scale)", yscale="log")
    _plain_ticks(axes)
    axes.legend(frameon=False)
    return figure


def lineages(rows: list[Row]) -> "Figure | None":
    """From whom each member's weights come, and their hyperparameters over time; None without a lineage."""
    rows = [row for row in rows if row.get("lineage") and row["history"]]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["value"] or 0.0)
    names = [name for name in best["lineage"][0]["hparams"] if name != "seed" and _changes(rows, name)]
    copies = len(best["lineage"]) - 1
    title = f"Where the weights of {len(rows)} members come from (thick: those of the best, copied {copies} times)"
    figure, axes = open_grid(title, 1 + len(names), 1, 6.5, 4 + 1.5 * len(names), [2, *[1] * len(names)])
    for row in sorted(rows, key=lambda row: row is best):
        style = {"color": COLORS[1], "linewidth": 2.2} if row is best else {"color": COLORS[2], "linewidth": 0.8}
        steps = row["history"][-1]["step"] / row["history"][-1]["epoch"]  # of an epoch
        begins = [line["step"] / steps for line in row["lineage"]]
        end = max(row["history"][-1]["epoch"], begins[-1])  # it may have diverged after its last copy
        x = [epoch for pair in zip(begins, [*begins[1:], end], strict=True) for epoch in pair]
        slots = [int(line["member"]) for line in row["lineage"]]
        axes[0].plot(x, [slot for slot in slots for _ in range(2)], **style)
        for axis, name in zip(axes[1:], names, strict=True):
            axis.plot(x, [line["hparams"][name] for line in row["lineage"] for _ in range(2)], **style)
    axes[0].set(ylabel="member")
    axes[0].locator_params(integer=True)
    for axis, name in zip(axes[1:], names, strict=True):
        values = sorted({line["hparams"][name] for row in rows for line in row["lineage"]})
        scale = "log" if scale_of(values) == "log" else "linear"
        axis.set(ylabel=spoken(name, scale).replace(" (log", "\n(log"), yscale=scale)
    for axis in axes:
        axis.set_xlim(0, max(row["history"][-1]["epoch"] for row in rows))
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[-1].set(xlabel="epoch")
    return figure


def _errors(row: Row) -> list[float]:
    """The validation error in percent after each epoch."""
    return [100 * (1 - line["accuracy"]) for line in row["history"] if line["split"] == "eval"]


def _changes(rows: list[Row], name: str) -> bool:
    return any(len({line["hparams"][name] for line in row["lineage"]}) > 1 for row in rows)


def _plain_ticks(axes: "Axes") -> None:
    """Write 2, 5 and 10 instead of powers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
