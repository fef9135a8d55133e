"""Loss and accuracy by epoch."""

from typing import TYPE_CHECKING, Any

from mnist_flax.figures.axes import COLORS, open_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(history: list[dict[str, Any]], eval_split: str) -> "Figure":
    """Loss and accuracy by epoch, in training and on the evaluation split, from the lines of `metrics.jsonl`."""
    figure, axes = open_grid("Training", 1, 2, 8, 3.6)
    figure.set_layout_engine(None)  # computing one takes as long as drawing, and `train` waits for it
    figure.subplots_adjust(0.085, 0.14, 0.985, 0.83, 0.2)
    said = {"train": "train (dropout on, mean over the epoch)", "eval": f"{eval_split} (after it)"}
    shown = (("loss", 1, "loss with L2 penalty (nats)"), ("accuracy", 100, "accuracy (%)"))
    for axis, (name, factor, label) in zip(axes, shown, strict=True):
        for split, color, style in (("train", COLORS[1], "o--"), ("eval", COLORS[2], "s-")):
            lines = [line for line in history if line["split"] == split]
            epochs, values = [line["epoch"] for line in lines], [factor * line[name] for line in lines]
            axis.plot(epochs, values, style, color=color, markersize=4 if len(lines) < 40 else 0, label=said[split])
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(color="0.9")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=2, loc=(0.25, 0.86))
    return figure
