"""Open an image-classification dataset of TFDS as arrays, without TensorFlow.

    dataset = open_dataset("mnist", data_dir=default_data_dir())
    train = dataset.read("train[:50000]")  # Split: images uint8 [N, 28, 28, 1], labels int32 [N]

The first use prepares `mnist/3.0.1` as TFDS would, from the files in this package, with a decoded copy next to it.
Every later use maps that copy into memory, and imports TFDS only for splits that are more than one slice.
"""

import contextlib
import hashlib
import os
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.data import prepare, splits
from mnist_flax.data.batches import Split
from mnist_flax.data.decode import decode, find_prepared, sum_of
from mnist_flax.errors import InputError, first_line, wrong
from mnist_flax.process import files
from mnist_flax.process.terminal import Track, no_track


@dataclass(frozen=True)
class Dataset:
    """A decoded dataset on disk."""

    directory: str
    image_shape: tuple[int, ...]  # (H, W, C)
    class_names: tuple[str, ...]
    examples: dict[str, int]  # of each split
    sha256: dict[str, str]  # of each file

    def read(self, split: str) -> Split:
        """The examples of a TFDS split string, memory-mapped if it is one range; `InputError` if it has none."""
        parts = [self._slice(name, start, stop) for name, start, stop in splits.ranges(split, self.examples)]
        images, labels = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if not (0 <= labels.min() and labels.max() < len(self.class_names)):
            raise InputError(f"split={split!r} holds examples without a label; the splits are {self.examples}")
        return Split(images, labels)

    def _slice(self, name: str, start: int, stop: int) -> list[np.ndarray]:
        paths = [Path(self.directory) / f"{name}-{what}.npy" for what in ("images", "labels")]
        return [np.load(path, mmap_mode="r", allow_pickle=False)[start:stop] for path in paths]


def cache_dir() -> Path:
    """This package's directory in the user's cache, for what can be made again."""
    import platformdirs

    return platformdirs.user_cache_path("mnist_flax")


def default_data_dir() -> Path:
    """Where datasets are prepared: not in TFDS's own directory, whose copies TensorFlow may use."""
    return cache_dir() / "data"


def lock(data_dir: Path) -> contextlib.AbstractContextManager[Any]:
    """Only one process prepares at a time; the others wait for it, and then find the work done."""
    data_dir.mkdir(parents=True, exist_ok=True)
    return files.lock(data_dir / ".mnist_flax.lock")


def open_dataset(name: str, data_dir: Path, manual_dir: Path | None = None, track: Track = no_track) -> Dataset:
    """Find the decoded copy of a dataset; download, prepare or decode again what is missing or damaged.

    Raises `InputError` for an unknown dataset, and for files that are damaged or cannot be downloaded or written.
    """
    is_idx = name in prepare.IDX_DATASETS
    if is_idx and manual_dir:
        prepare.check_sources(name, manual_dir)  # even if they are not needed any more
    try:
        if is_idx and (dataset := find_decoded(name, data_dir)):
            return dataset
        if is_idx and not prepare.is_prepared(name, data_dir):
            prepare.check_sources(name, manual_dir)
            with lock(data_dir):
                if not prepare.is_prepared(name, data_dir):
                    prepare.prepare(name, data_dir, manual_dir, track)
        builder = find_prepared(name, data_dir)
        prepared = Path(builder.data_path)
        if dataset := _find_decoded(prepared):
            return dataset
        beside, elsewhere = _decoded_dirs(prepared)
        directory = beside if os.access(prepared, os.W_OK) else elsewhere
        with lock(data_dir if directory == beside else directory.parent):
            return _find_decoded(prepared) or _dataset(directory, decode(name, builder, directory, track))
    except (OSError, RuntimeError) as error:
        raise wrong("data_dir", data_dir, f"cannot be used ({first_line(error)})", "give another --data-dir") from error


def dataset_info(dataset: Dataset, train_split: str, eval_split: str, data_dir: Path) -> dict[str, Any]:
    """What `config.json` records about a run's data."""
    return {
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        "train_examples": len(dataset.read(train_split).labels),
        "eval_examples": len(dataset.read(eval_split).labels),
        "sha256": dataset.sha256,
        "data_dir": str(data_dir),
    }


def find_decoded(name: str, data_dir: Path) -> Dataset | None:
    """The decoded copy of a dataset, or None if it is missing or damaged; writes nothing."""
    if name in prepare.IDX_DATASETS:
        return _find_decoded(prepare.prepared_dir(name, data_dir))
    with contextlib.suppress(InputError, OSError):
        return _find_decoded(Path(find_prepared(name, data_dir).data_path))


def _decoded_dirs(prepared: Path) -> tuple[Path, Path]:
    """Where the decoded copy of a prepared dataset may be: next to it or, if that may not be written, in the cache."""
    # Another dataset may be prepared in the same place later.
    files_there = sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in _files_in(prepared))
    key = hashlib.sha256(repr((os.fsencode(prepared), files_there)).encode()).hexdigest()[:16]
    return prepared / "decoded", cache_dir() / "decoded" / key


def _files_in(directory: Path) -> list[Path]:
    return [entry for entry in directory.iterdir() if entry.is_file()] if directory.is_dir() else []


def _find_decoded(prepared: Path) -> Dataset | None:
    return next(filter(None, map(_read_decoded, _decoded_dirs(prepared))), None)


def _read_decoded(directory: Path) -> Dataset | None:
    try:
        spec = files.read_json(directory / "spec.json")
        if not _is_spec(spec) or not all((directory / file).is_file() for file in spec["sha256"]):
            return None
        dataset = _dataset(directory, spec)
        if not all(_fits(dataset, split) for split in dataset.examples):
            return None
        # 55 MB at 1.5 GB/s: cheap, and a flipped bit in the data must not go unnoticed.
        sound = all(files.sha256(directory / file) == expected for file, expected in dataset.sha256.items())
    except (OSError, ValueError, tokenize.TokenError):  # the last of NumPy, for a header that is not one
        return None
    return dataset if sound else None


def _fits(dataset: Dataset, split: str) -> bool:
    """Whether a split's files hold as many images and labels as the description says, of its shape; reads no array."""
    count, path = dataset.examples[split], Path(dataset.directory)
    if not count:  # nothing to map
        return True
    images, labels = (np.lib.format.open_memmap(path / f"{split}-{what}.npy", "r") for what in ("images", "labels"))
    found = (images.shape, images.dtype), (labels.shape, labels.dtype)
    return found == (((count, *dataset.image_shape), np.uint8), ((count,), np.int32))


def _is_spec(spec: Any) -> bool:
    """Whether JSON describes a decoded copy: in a directory that somebody's `config.json` names it may be anything."""
    if not isinstance(spec, dict) or not {"image_shape", "class_names", "examples", "sha256"} <= spec.keys():
        return False
    shape, names, examples = spec["image_shape"], spec["class_names"], spec["examples"]
    if not (isinstance(shape, list) and isinstance(names, list) and isinstance(examples, dict)):
        return False
    counts = [*shape, *examples.values()]
    return (
        all(type(count) is int and 0 <= count < 2**31 for count in counts)
        and all(isinstance(name, str) and name.isprintable() for name in names)
        and spec.get("spec_sha256") in (None, sum_of(spec))  # older copies lack it
        and isinstance(spec["sha256"], dict)
        and spec["sha256"].keys() == {f"{split}-{what}.npy" for split in examples for what in ("images", "labels")}
    )


def _dataset(directory: Path, spec: dict[str, Any]) -> Dataset:
    shape, names = tuple(spec["image_shape"]), tuple(spec["class_names"])
    return Dataset(str(directory), shape, names, spec["examples"], spec["sha256"])
