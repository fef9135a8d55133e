"""Image-classification data by TFDS, without TensorFlow; batches as arrays of indices.

    dataset = open_dataset("mnist", data_dir=default_data_dir())
    train = dataset.read("train[:50000]")  # Split: images uint8 [N, 28, 28, 1], labels int32 [N]
    epoch_batches(len(train.labels), 128, seed=0, epoch=0)  # int32 [S, 128], -1 where the last batch is short

The first use prepares `mnist/3.0.1` as TFDS would, from the files in this package, and writes a decoded copy beside it;
every later use maps that copy into memory, and does not even import TFDS unless a split is more than one slice.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_flax import prepare, splits
from mnist_flax.config import InputError
from mnist_flax.decode import Track, decode, find_prepared


class Split(NamedTuple):
    """The examples of a split."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N]


@dataclass(frozen=True)
class Dataset:
    """A decoded dataset on disk."""

    directory: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    examples: dict[str, int]
    sha256: dict[str, str]

    def read(self, split: str) -> Split:
        """The examples of a TFDS split string, memory-mapped where it is one range.

        Raises:
          InputError: the dataset has no such split, or it is empty.
        """
        parts = [self._slice(name, start, stop) for name, start, stop in splits.ranges(split, self.examples)]
        if len(parts) == 1:
            images, labels = parts[0]  # still memory-mapped
        else:
            images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if not (0 <= labels.min() and labels.max() < len(self.class_names)):
            raise InputError(f"split={split!r} holds examples without a label; the splits are {self.examples}")
        return Split(images, labels)

    def _slice(self, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        files = [Path(self.directory) / f"{name}-{what}.npy" for what in ("images", "labels")]
        images, labels = (np.load(f, mmap_mode="r", allow_pickle=False)[start:stop] for f in files)
        return images, labels


def cache_dir() -> Path:
    """What can be made again, in the user's cache."""
    import platformdirs

    return platformdirs.user_cache_path("mnist_flax")


def default_data_dir() -> Path:
    """A directory of our own: what TFDS prepared for TensorFlow elsewhere stays as it is."""
    return cache_dir() / "data"


def no_track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Show no progress."""
    return items


def open_dataset(name: str, data_dir: Path, manual_dir: Path | None = None, track: Track = no_track) -> Dataset:
    """Find the decoded copy of a dataset; prepare, download or repair what is missing (see `prepare`).

    Raises:
      InputError: there is no such dataset, its files are damaged, or they cannot be fetched or written.
    """
    is_idx = name in prepare.IDX_DATASETS
    if is_idx and manual_dir:
        prepare.check_sources(name, manual_dir)  # even where they are not needed any more
    try:
        if is_idx and (dataset := _read_decoded(prepare.prepared_dir(name, data_dir) / "decoded")):
            return dataset
        if is_idx and not prepare.is_prepared(name, data_dir):
            prepare.check_sources(name, manual_dir)
            with _lock(data_dir):
                if not prepare.is_prepared(name, data_dir):
                    prepare.prepare(name, data_dir, manual_dir, track)
        builder = find_prepared(name, data_dir)
        directory = Path(builder.data_path) / "decoded"
        if dataset := _read_decoded(directory):
            return dataset
        with _lock(data_dir):
            return _read_decoded(directory) or _dataset(directory, decode(name, builder, directory, track))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data_dir={str(data_dir)!r} cannot be used ({_first_line(error)}); give another --data-dir"
        ) from error


def facts(dataset: Dataset, train_split: str, eval_split: str, data_dir: Path) -> dict[str, Any]:
    """What a run records about its data (see `record.Run`)."""
    return {
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "train_examples": len(dataset.read(train_split).labels),
        "eval_examples": len(dataset.read(eval_split).labels),
        "sha256": dataset.sha256,
        "data_dir": str(data_dir),
    }


def find_decoded(name: str, data_dir: Path) -> Dataset | None:
    """The decoded copy of a dataset if it is there and sound; writes nothing."""
    if name in prepare.IDX_DATASETS:
        return _read_decoded(prepare.prepared_dir(name, data_dir) / "decoded")
    try:
        return _read_decoded(Path(find_prepared(name, data_dir).data_path) / "decoded")
    except (InputError, OSError):
        return None


def epoch_batches(num_examples: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: every index once, a function of (seed, epoch) alone.

    Returns:
      int32 [S, B] with S = ceil(num_examples / B); the last batch is filled up with -1.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return _in_batches(order, batch_size)


def eval_batches(num_examples: int, batch_size: int) -> np.ndarray:
    """Every index once, in order: int32 [S, B], the last batch filled up with -1."""
    return _in_batches(np.arange(num_examples), min(batch_size, num_examples))


def _in_batches(indices: np.ndarray, batch_size: int) -> np.ndarray:
    steps = -(-len(indices) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int32)
    padded[: len(indices)] = indices
    return padded.reshape(steps, batch_size)


@contextlib.contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """One process prepares at a time; the others wait and find the work done."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".mnist_flax.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_decoded(directory: Path) -> Dataset | None:
    """The decoded copy, or None where it is missing or not what was written."""
    try:
        dataset = _dataset(directory, json.loads((directory / "spec.json").read_text()))
        # 55 MB at 1.5 GB/s: cheap, and a flipped bit in the data must not go unnoticed.
        for file, expected in dataset.sha256.items():
            if hashlib.sha256((directory / file).read_bytes()).hexdigest() != expected:
                return None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return dataset


def _dataset(directory: Path, spec: dict[str, Any]) -> Dataset:
    height, width, channels = spec["image_shape"]
    return Dataset(
        str(directory), (height, width, channels), tuple(spec["class_names"]), spec["examples"], spec["sha256"]
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
