"""Find the user's labelled images: a folder of class folders, an .npz file, or four files in MNIST's format (IDX).

source = find(Path("pictures"), no_track)
item = source.items[0]  # Item(split="", class_name="cat", name="cat/1.png", picture=Path("pictures/cat/1.png"))
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnist_flax.errors import first_line, wrong
from mnist_flax.process import files
from mnist_flax.process.terminal import Track

SPLITS = ("train", "test")
_IDX_STEMS = {"train": "train", "test": "t10k"}
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")  # as in Keras's mnist.npz
_KINDS = "give a folder of class folders, an .npz file, or a folder with MNIST's four files"


class Item(NamedTuple):
    """One image of a source, not yet opened."""

    split: str  # train, test, or empty: to be drawn
    class_name: str
    name: str  # for messages
    picture: Path | np.ndarray  # uint8 [H, W], [H, W, 1] or [H, W, 3]


@dataclass(frozen=True)
class Source:
    """The images of a source."""

    items: list[Item]
    class_names: list[str]  # in the order of their labels; some may have no image
    sha256: dict[str, str]  # of each file; of a folder one, named /
    skipped: list[tuple[str, str]] = field(default_factory=list)  # name, reason

    @property
    def has_splits(self) -> bool:
        """Whether it says itself which images are for the test."""
        return any(item.split for item in self.items)


def find(path: Path, track: Track) -> Source:
    """List the images of a source and compute its checksums; raises `InputError` for what is none of the three."""
    try:
        if path.is_file():
            return _npz(path)
        if not path.is_dir():
            raise wrong("source", path, "is not a file or a folder", _KINDS)
        return _idx(path) or _folders(path, track)
    except OSError as error:
        raise wrong("source", path, f"cannot be read ({first_line(error)})", _KINDS) from None


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, gzipped or not: uint8 [N, ...]; raises `ValueError` if it is damaged."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(str(error)) from None
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError("it is not an IDX file of bytes")
    dimensions = np.frombuffer(content, ">u4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(dimensions)


def _idx(path: Path) -> Source | None:
    """MNIST's four files; None if a folder has none of them."""
    found, missing, arrays = {}, [], {}
    for split, stem in _IDX_STEMS.items():
        for part in ("images-idx3", "labels-idx1"):
            file = path / f"{stem}-{part}-ubyte"
            gz = file.with_name(f"{file.name}.gz")
            existing = file if file.is_file() else gz
            if not existing.is_file():
                missing.append(gz.name)
                continue
            found[split, part] = existing
    if not found:
        return None
    if missing:
        raise wrong("source", path, f"lacks {', '.join(missing)}", "put it there, gzipped or not")
    for key, file in found.items():
        try:
            arrays[key] = read_idx(file)
        except ValueError as error:
            raise wrong("source", file, f"is damaged ({first_line(error)})", "get it again") from None
    pairs = {split: (arrays[split, "images-idx3"], arrays[split, "labels-idx1"]) for split in SPLITS}
    return _of_arrays(path, pairs, {file.name: files.sha256(file) for file in found.values()})


def _npz(path: Path) -> Source:
    """The arrays of an .npz file with Keras's names."""
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(getattr(archive, "files", ()))
            if missing := [key for key in _NPZ_KEYS if key not in names]:
                raise wrong("source", path, f"lacks {', '.join(missing)}", f"give an .npz with {', '.join(_NPZ_KEYS)}")
            x_train, y_train, x_test, y_test = (archive[key] for key in _NPZ_KEYS)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError, NotImplementedError) as error:
        raise wrong("source", path, f"is not an .npz of plain arrays ({first_line(error)})", _KINDS) from None
    pairs = {"train": (x_train, y_train), "test": (x_test, y_test)}
    return _of_arrays(path, pairs, {path.name: files.sha256(path)})


def _of_arrays(path: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], sha256: dict[str, str]) -> Source:
    """The images uint8 [N, H, W] or [N, H, W, 1 or 3] and whole-number labels [N] or [N, 1] of each split."""
    items, labels_found = [], set()
    for split, (images, labels) in pairs.items():
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (1,), (3,)) or images.ndim < 3 or not images.size:
            problem = f"has {split} images {images.dtype} {[*images.shape]}"
            raise wrong("source", path, problem, "give uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
        if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
            problem = f"has {split} labels {labels.dtype} {[*labels.shape]}"
            raise wrong("source", path, problem, f"give whole numbers [{len(images)}], one for each image")
        numbers = labels.ravel().tolist()
        labels_found |= {*numbers}
        for index, (image, label) in enumerate(zip(images, numbers, strict=True)):
            items.append(Item(split, str(label), f"{split}[{index}]", image))
    return Source(items, [str(label) for label in sorted(labels_found)], sha256)


def _folders(path: Path, track: Track) -> Source:
    """Class folders, directly or below train and test."""
    entries, items, class_names, skipped = _visible(path), [], set(), []
    present = [split for split in SPLITS if any(each.is_dir() for each in _visible(path / split))]
    if len(present) == 1:
        [missing] = {*SPLITS} - {*present}
        raise wrong("source", path, f"has {present[0]} without {missing}", f"add it, or give {path / present[0]}")
    if present:
        skipped += [(entry.name, "is neither train nor test") for entry in entries if entry.name not in SPLITS]
    for split, root in [(split, path / split) for split in present] or [("", path)]:
        for entry in _visible(root):
            if not entry.is_dir():
                skipped.append((str(entry.relative_to(path)), "is not in a class folder"))
                continue
            class_names.add(entry.name)
            for file in _visible(entry):
                name = str(file.relative_to(path))
                if file.is_file():
                    items.append(Item(split, entry.name, name, file))
                else:
                    skipped.append((name, "is not a file"))
    total = hashlib.sha256()
    for item in track(items, "computing checksums", len(items)):
        total.update(f"{files.sha256(item.picture)}  {item.name}\n".encode(errors="surrogateescape"))
    return Source(items, sorted(class_names), {"/": total.hexdigest()}, skipped)


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, in order, but for names that begin with a dot; nothing if it is not a folder."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
