"""Write the event files that TensorBoard reads, without TensorFlow.

TensorBoard draws the runs `train` and `eval` in one chart; settings, graph, parameters and images are in `eval`.
"""

import importlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

from mnist_flax.config import Config, to_json
from mnist_flax.figures.pictures import largest_units, mosaic
from mnist_flax.monitor.async_writer import Node
from mnist_flax.process.files import remove, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

# Imported by name, since a type checker does not see the classes that protobuf makes during the import.
event_pb2, graph_pb2, node_def_pb2, summary_pb2 = (
    cast(Any, importlib.import_module(f"tensorboardX.proto.{name}_pb2"))
    for name in ("event", "graph", "node_def", "summary")
)

_SCORES = ("loss", "cross_entropy", "l2_penalty", "accuracy")


class TensorBoardWriter:
    """Writes the event files of one training process."""

    def __init__(self, directory: Path, start: int) -> None:
        """Open new files in `directory`/train and /eval, and hide events of steps above `start` in older files."""
        self._writers = {}
        for name in ("train", "eval"):
            (directory / name).mkdir(parents=True, exist_ok=True)
            # The process id keeps apart two writers that start in the same second.
            self._writers[name] = EventsWriter(str(directory / name / "events"), f".{os.getpid()}")
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(name, event_pb2.Event(step=start + 1 if start else 0, session_log=log))

    def describe(self, config: Config, graph: list[Node]) -> None:
        """Write the config as text, and the network as a graph."""
        self._add("eval", summary.text("config", f"```\n{json.dumps(to_json(config), indent=2)}\n```"), 0)
        nodes = [node_def_pb2.NodeDef(name=name, op=op, input=inputs) for name, op, inputs in graph]
        self._write("eval", event_pb2.Event(graph_def=graph_pb2.GraphDef(node=nodes).SerializeToString()))

    def hyperparameters(self, values: dict[str, Any]) -> None:
        """Write the settings by which TensorBoard compares this run with others."""
        plain = {name: v if isinstance(v, (int, float, str)) else str(list(v)) for name, v in values.items()}
        experiment, session, self._end = summary.hparams(plain, dict.fromkeys(_SCORES, 0.0))
        for each in (experiment, session):
            self._add("eval", each, 0)

    def steps(self, values: dict[str, np.ndarray], last: int) -> None:
        """Write scalars of the training steps up to `last`: float [K] by tag; NaN is left out."""
        rows = list(zip(*values.values(), strict=True))
        for step, row in enumerate(rows, last + 1 - len(rows)):
            known = {tag: value for tag, value in zip(values, row, strict=True) if not np.isnan(value)}
            self._add("train", _scalars(known), step)

    def scores(self, line: dict[str, Any]) -> None:
        """Write the scalars of a line of `metrics.jsonl`."""
        known = {name: line[name] for name in _SCORES if name in line}  # lines of older versions have fewer
        self._add(line["split"], _scalars(known), line["step"])

    def parameters(self, params: Any, step: int) -> None:
        """Write histograms and norms of all parameters."""
        for name, leaf in _leaves(params, ""):
            self._add("eval", _histogram(name, leaf.ravel()), step)
            self._add("eval", _scalars({f"norm/{name}": float(np.linalg.norm(leaf))}), step)

    def first_layer(self, weights: np.ndarray, step: int) -> None:
        """Write the first layer's weights, float [units, H, W, C], as an image."""
        pictures, limit = largest_units(weights)
        image = summary.image("first_layer", _colored(mosaic(pictures / limit, 8, 0)), dataformats="HWC")
        self._add("eval", image, step)

    def picture(self, tag: str, picture: "Image", step: int) -> None:
        """Write a Pillow image."""
        layout = "HW" if picture.mode == "L" else "HWC"
        self._add("eval", summary.image(tag, np.asarray(picture), dataformats=layout), step)

    def finish(self) -> None:
        """Mark the run as finished in the table of hyperparameters."""
        self._add("eval", self._end, 0)

    def flush(self) -> None:
        """Return when everything is in the files."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, name: str, what: Any, step: int) -> None:
        self._write(name, event_pb2.Event(step=step, summary=what))

    def _write(self, name: str, event: Any) -> None:
        event.wall_time = time.time()
        self._writers[name].write_event(event)


def write_members(directory: Path, rows: list[dict[str, Any]]) -> None:
    """Write event files of a sweep's finished members, from the rows of results.jsonl, for TensorBoard to compare.

    Each member has its own directory; those that exist are left alone. Others of ours are removed: of members that are
    not among the rows any more, half written ones, and those of older versions, whose numbers could change their owner.
    """
    targets = {directory / f"{row['stage']}-trial-{row['trial']:04d}": row for row in rows}
    for entry in directory.glob("*"):
        if entry not in targets and re.fullmatch(r"\W?(saving-)?(selection|final)-(trial-)?\d+(\.tmp)?", entry.name):
            remove(entry)
    for target, row in targets.items():
        if target.exists():
            continue
        method = {"method": row["method"]} if row["method"] else {}
        with replacing(target) as scratch:
            writer = TensorBoardWriter(scratch, start=0)
            writer.hyperparameters({"stage": row["stage"]} | method | row["overrides"])
            for line in row["history"]:
                writer.scores(line)
            writer.finish()
            writer.close()


def _leaves(tree: Any, path: str) -> list[tuple[str, np.ndarray]]:
    """The arrays of nested dicts, each with its path: `dense_1/kernel`."""
    if isinstance(tree, dict):
        return [leaf for name, part in tree.items() for leaf in _leaves(part, f"{path}/{name}" if path else name)]
    return [(path, tree)]


def _scalars(values: dict[str, float]) -> Any:
    return summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
    )


def _histogram(tag: str, values: np.ndarray, bins: int = 64) -> Any:
    """A histogram of float32 [N] in equal bins; `np.histogram`, exact at their edges, takes three times as long."""
    low, high = float(values.min()), float(values.max())
    width = (high - low) / bins or 1.0
    places = np.nan_to_num((values - values.min()) * np.float32(1 / width))  # a range beyond float32 has no places
    which = np.clip(places, 0, bins - 1).astype(np.int32)
    moments = float(values.sum(dtype=np.float64)), float(values @ values)
    limits = low + width * np.arange(1, bins + 1)
    return summary.histogram_raw(tag, low, high, len(values), *moments, limits, np.bincount(which, minlength=bins))


def _colored(weights: np.ndarray) -> np.ndarray:
    """Colors from -1 (orange) over 0 (white) to 1 (blue), uint8 [..., 3]; the ends are equally dark."""
    ends = np.where(weights[..., None] < 0, (179, 88, 6), (45, 76, 160))
    return np.round(255 + np.minimum(np.abs(weights), 1)[..., None] * (ends - 255)).astype(np.uint8)
