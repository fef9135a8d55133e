"""Write the user's images as a TFDS dataset, which TFDS and every command open by name.

build("mydigits", images, metadata, data_dir, track, signals)
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_flax.data import datasets, prepare
from mnist_flax.data.own_images import OwnImages
from mnist_flax.errors import first_line, wrong
from mnist_flax.process import files
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import Track

VERSION = "1.0.0"


def check_name(name: str) -> None:
    """Raise `InputError` for what is not a name of a dataset, or is the name of another one."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        remedy = "give small letters, digits and _, a letter first, such as --name mydigits"
        raise wrong("name", name, "is not a name for a dataset", remedy)
    import tensorflow_datasets as tfds

    if name in prepare.IDX_DATASETS or name in tfds.list_builders(with_community_datasets=False):
        raise wrong("name", name, "is the name of a dataset of TFDS", f"choose another --name, such as my_{name}")


def find_built(name: str, data_dir: Path, metadata: dict[str, Any]) -> Path | None:
    """The dataset that was made from the same source with the same flags; `InputError` if another has the name."""
    directory = data_dir / name
    if not directory.exists():
        return None
    with contextlib.suppress(OSError, ValueError):
        if files.read_json(directory / VERSION / "metadata.json") == metadata:
            return directory / VERSION
    problem = f"is taken: {directory} was made from another source or with other flags"
    raise wrong("name", name, problem, "choose another --name, or remove that directory")


def build(
    name: str, images: OwnImages, metadata: dict[str, Any], data_dir: Path, track: Track, signals: StopSignals
) -> Path:
    """Write a dataset and return its directory, which appears when it is whole.

    Raises `InputError` if the name is taken or `data_dir` cannot be written, and `Stopped` if a signal came.
    """
    stop = f"{name} was not written"
    try:
        with datasets.lock(data_dir):
            for leftover in data_dir.glob(f"{files.SCRATCH}*"):
                files.remove(leftover)  # of a process that was killed
            if not find_built(name, data_dir, metadata):
                with signals.deferred(), files.replacing(data_dir / name) as scratch:
                    written = _write(name, images, metadata, scratch / "tfds", prepare.shown(track), signals)
                    written.replace(scratch / VERSION)
                    files.remove(scratch / "tfds")
                    if signals.received:
                        raise Stopped(signals.received, stop)
    except Exception as error:  # of any kind: TFDS wraps what is raised in a builder
        if signals.received:
            raise Stopped(signals.received, stop) from None
        if isinstance(error, OSError | RuntimeError):
            problem = f"cannot be written ({first_line(error)})"
            raise wrong("data_dir", data_dir, problem, "give another --data-dir") from error
        raise
    return data_dir / name / VERSION


def _write(
    name: str, images: OwnImages, metadata: dict[str, Any], directory: Path, track: Track, signals: StopSignals
) -> Path:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    shape = images.splits["train"].images.shape[1:]
    features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(names=images.class_names)}
    with registered.skip_registration():

        class Own(tfds.core.GeneratorBasedBuilder):
            """TFDS orders the examples by a hash of their keys, so that part of a split has every class."""

            VERSION = tfds.core.Version(VERSION)

            def _info(self) -> tfds.core.DatasetInfo:
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Made by mnist_flax.data.",
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                    metadata=tfds.core.MetadataDict(metadata),
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {split: self._generate_examples(split) for split in images.splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
                arrays, labels = images.splits[split]
                for index in track(range(len(labels)), f"preparing {name} {split}", len(labels)):
                    if signals.received:
                        raise Stopped(signals.received, "")
                    yield index, prepare.example(arrays[index], int(labels[index]))

    return prepare.write(Own, name, directory)
