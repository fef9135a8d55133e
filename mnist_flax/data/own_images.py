"""Open every image of a source, bring all to one shape, and divide them into train and test.

images = read(path, source, Options(size=28), no_track)
train = images.splits["train"]  # Split: images uint8 [N, 28, 28, 1 or 3], labels int32 [N]
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mnist_flax.data import digits, pictures
from mnist_flax.data.batches import Split
from mnist_flax.data.sources import SPLITS, Item, Source
from mnist_flax.errors import InputError, first_line, wrong
from mnist_flax.process.terminal import Track


class Options(NamedTuple):
    """How images are read and divided."""

    size: int | None = None  # the side to which they are resized; None: all have one size already
    channels: int | None = None  # 1 or 3; None: 1 if all are grey, else 3
    like_mnist: bool = False  # see `digits.as_mnist`
    test_share: float = 0.2
    seed: int = 0


class OwnImages(NamedTuple):
    """Images of one shape."""

    class_names: list[str]
    splits: dict[str, Split]  # train and test
    skipped: list[tuple[str, str]]  # name, reason


def read(path: Path, source: Source, options: Options, track: Track) -> OwnImages:
    """Open every image; those that are broken, and classes without an image, are skipped.

    Raises `InputError` if they differ in size and none is given, or the rest makes no dataset.
    """
    kept, opened, skipped = _open_all(source, options, track)
    present = {item.class_name for item in kept}
    skipped = [*source.skipped, *skipped, *((n, "has no image") for n in source.class_names if n not in present)]
    class_names = [name for name in source.class_names if name in present]
    _check_classes(path, class_names, skipped)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[item.class_name] for item in kept], np.int32)
    if source.has_splits:
        in_test = np.array([item.split == "test" for item in kept])
        _check_splits(path, class_names, labels, in_test)
    else:
        in_test = draw_test(labels, options.test_share, options.seed)
    mode = {1: "L", 3: "RGB"}[options.channels or max(1 if picture.mode == "L" else 3 for picture in opened)]
    splits = {}
    for split, chosen in zip(SPLITS, (~in_test, in_test), strict=True):
        images = np.stack([np.asarray(opened[index].convert(mode)) for index in np.flatnonzero(chosen)])
        splits[split] = Split(images.reshape(*images.shape[:3], -1), labels[chosen])
    return OwnImages(class_names, splits, skipped)


def draw_test(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which images are for the test, bool [N]: this share of each class, and one at least of two or more."""
    rng = np.random.default_rng(seed)
    in_test = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        indices = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(indices)), 1), len(indices) - 1)
        in_test[indices[:count]] = True
    if not in_test.any():
        raise wrong("test_share", share, "leaves no image for the test", "give two or more images of a class")
    return in_test


def _open_all(
    source: Source, options: Options, track: Track
) -> tuple[list[Item], list[Image.Image], list[tuple[str, str]]]:
    """The items that can be opened, their images (`L` or `RGB`, of one size), and the others with the reason."""
    kept, opened, skipped = [], [], []
    for item in track(source.items, "reading images", len(source.items)):
        try:
            picture = _open(item.picture, options)
        except InputError as error:
            skipped.append((item.name, str(error)))
            continue
        if opened and picture.size != opened[0].size:
            both = [(kept[0].name, opened[0].size), (item.name, picture.size)]
            shown = ", ".join(f"{name} {width} x {height}" for name, (width, height) in both)
            raise wrong(
                "size",
                None,
                f"needs images of one size, and they differ ({shown})",
                "give the side to resize to: --size 28",
            )
        kept.append(item)
        opened.append(picture)
    return kept, opened, skipped


def _open(source: Path | np.ndarray, options: Options) -> Image.Image:
    """An image as `L` if it is grey, else `RGB`; raises `InputError`, with the reason alone, if it is broken."""
    if isinstance(source, Path):
        try:
            picture = pictures.opaque(pictures.open_picture(source.read_bytes()))
        except OSError as error:
            raise InputError(f"cannot be read ({first_line(error)})") from None
    else:
        picture = Image.fromarray(source.squeeze(-1) if source.shape[2:] == (1,) else source)
    if options.like_mnist:
        return Image.fromarray(digits.as_mnist(np.asarray(picture.convert("L"))))
    picture = picture.convert("L") if pictures.is_grey(picture) else picture
    return pictures.fit(picture, options.size) if options.size else picture


def _check_classes(path: Path, class_names: list[str], skipped: list[tuple[str, str]]) -> None:
    if len(class_names) < 2:
        first = f" (skipped {len(skipped)}: {skipped[0][0]} {skipped[0][1]}, ...)" if skipped else ""
        remedy = "add PNG or JPEG files, in a folder for each class"
        raise wrong("source", path, f"has fewer than two classes with images{first}", remedy)
    for name in class_names:
        if not name.isprintable() or name != name.strip():
            raise wrong("source", path, f"has a class {name!r:.60}", "rename it: printable, no blank at an end")


def _check_splits(path: Path, class_names: list[str], labels: np.ndarray, in_test: np.ndarray) -> None:
    for split, chosen in zip(SPLITS, (~in_test, in_test), strict=True):
        if not chosen.any():
            raise wrong("source", path, f"has no image for {split}", f"add images to {split}")
    if only := {*labels[in_test].tolist()} - {*labels[~in_test].tolist()}:
        name = class_names[min(only)]
        raise wrong("source", path, f"has images of class {name!r} for test only", "add images of it to train")
