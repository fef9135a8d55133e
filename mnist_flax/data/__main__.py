"""Make a dataset of your own images, for --dataset of every command; or list the datasets that are prepared.

python -m mnist_flax.data pictures --name mydigits --size 28
python -m mnist_flax.data
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from mnist_flax.errors import wrong
from mnist_flax.process import cli
from mnist_flax.process.signals import StopSignals
from mnist_flax.process.terminal import no_track, say, table, track, warn

if TYPE_CHECKING:
    from mnist_flax.data.own_images import OwnImages

_SKIPPED_SHOWN = 20
_LARGEST = 1024  # pixels of a side


@dataclass(frozen=True)
class Args:
    """Make a TFDS dataset of your own images, for --dataset of every command; or list those that are prepared.

    A source is one of: a folder that has a folder of PNG or JPEG files for each class, directly or below train/ and
    test/; an .npz file with x_train, y_train, x_test and y_test, as Keras has them; a folder with the four files of
    MNIST, gzipped or not. Without a source, list what is prepared.
    """

    source: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[SOURCE]")]] = None
    """The images. Names that begin with a dot are ignored; what is broken or of another type is named and skipped."""
    name: str | None = None
    """The new dataset's name: small letters, digits and _, such as mydigits."""
    size: int | None = None
    """Resize to a square of this side: bilinear, anti-aliased, proportions kept, padded with the border's median."""
    channels: Literal[1, 3] | None = None
    """1 is grey, 3 is colour. Default: 1 if every image is grey, else 3."""
    like_mnist: bool = False
    """Normalise each image as MNIST's are, and as predict and the html page do: light on black, centred, 28 x 28."""
    test_share: float = 0.2
    """The share of each class that is drawn at random for test, if the source has none."""
    seed: int = 0
    """Seed of that draw."""
    data_dir: Path | None = None
    """Where prepared datasets live. Default: the user's cache."""
    json: bool = False
    """JSON instead of words: one object for the new dataset, or one a line for each that is prepared."""


def run(args: Args, signals: StopSignals) -> None:
    """The command: look at every image before anything is written."""
    from mnist_flax.data import datasets

    data_dir = (args.data_dir or datasets.default_data_dir()).expanduser().absolute()
    if args.source is not None:
        _check(args)
        _make(args, args.source.expanduser().absolute(), data_dir, signals)
    elif args.name is not None:
        raise wrong(
            "source", None, "is missing", "give a folder or an .npz file, or no --name to list what is prepared"
        )
    else:
        _list(data_dir, args.json)


def _check(args: Args) -> None:
    """Raise `InputError` for a flag that is wrong whatever the images are."""
    if args.name is None:
        raise wrong("name", None, "is missing", "give the new dataset's name, such as --name mydigits")
    if args.size is not None and not 1 <= args.size <= _LARGEST:
        raise wrong("size", args.size, "is out of range", f"give a whole number from 1 to {_LARGEST}")
    if not 0 < args.test_share < 1:
        raise wrong("test_share", args.test_share, "is out of range", "give a number between 0 and 1, such as 0.2")
    if not 0 <= args.seed < 2**32:
        raise wrong("seed", args.seed, "is out of range", f"give a whole number from 0 to {2**32 - 1}")
    if args.like_mnist and (args.size not in (None, 28) or args.channels == 3):
        given = f"size={args.size}, channels={args.channels}"
        raise wrong("like_mnist", True, f"makes grey images of 28 x 28 ({given})", "leave out --size and --channels")


def _make(args: Args, path: Path, data_dir: Path, signals: StopSignals) -> None:
    from mnist_flax.data import build, own_images, sources

    assert args.name is not None
    build.check_name(args.name)
    progress = no_track if args.json else track
    source = sources.find(path, progress)
    options = own_images.Options(args.size, args.channels, args.like_mnist, args.test_share, args.seed)
    flags = options._asdict()
    if source.has_splits:  # they draw nothing
        del flags["test_share"], flags["seed"]
    metadata = {"source": path.name, "sha256": source.sha256, "flags": flags}
    if directory := build.find_built(args.name, data_dir, metadata):
        same = f"{args.name} is prepared already, from the same images with the same flags: nothing to do"
        say(json.dumps({"name": args.name, "directory": str(directory), "new": False}) if args.json else same)
        return
    images = own_images.read(path, source, options, progress)
    directory = build.build(args.name, images, metadata, data_dir, progress, signals)
    about = _about(args.name, directory, images) | {"sha256": source.sha256}
    train = images.splits["train"].images
    if train.shape[1:] == (28, 28, 1) and np.median(train[:, (0, -1)]) > 127:  # the first and the last row
        warn("images are dark on light, but predict and the html page make theirs light on black: try --like-mnist")
    if args.json:
        say(json.dumps(about))
    else:
        _print(about, "" if args.data_dir is None else f" --data-dir {shlex.quote(str(args.data_dir))}")


def _about(name: str, directory: Path, images: "OwnImages") -> dict[str, Any]:
    """A new dataset, in JSON values."""
    counts = {
        split: dict(zip(images.class_names, np.bincount(part.labels).tolist(), strict=False))
        for split, part in images.splits.items()
    }
    shape = [*images.splits["train"].images.shape[1:]]
    about = {"name": name, "directory": str(directory), "new": True, "image_shape": shape, "examples": counts}
    return about | {"skipped": [{"file": file, "reason": reason} for file, reason in images.skipped]}


def _print(about: dict[str, Any], more_flags: str) -> None:
    skipped, examples = about["skipped"], about["examples"]
    for entry in skipped[:_SKIPPED_SHOWN]:
        warn(f"skipped {entry['file']}: {entry['reason']}")
    if len(skipped) > _SKIPPED_SHOWN:
        warn(f"skipped {len(skipped) - _SKIPPED_SHOWN:,} more; --json names all")
    classes = [*examples["train"]]
    rows = [[name, *(f"{counts.get(name, 0):,}" for counts in examples.values())] for name in classes]
    totals = [f"{sum(counts.values()):,}" for counts in examples.values()]
    say(table([["class", *examples], *rows, ["all", *totals]], numbers=examples))
    shape, name = about["image_shape"], about["name"]
    say(f"{name}: {len(classes)} classes, images of {_size(shape)}, in {about['directory']}")
    say(f"To train on it: python -m mnist_flax.train --workdir exp1 --dataset {name}{more_flags}")


def _list(data_dir: Path, as_json: bool) -> None:
    from mnist_flax.data.listing import prepared_datasets

    found = prepared_datasets(data_dir)
    if as_json:
        for each in found:
            say(json.dumps(asdict(each)))
        return
    if not found:
        say(f"Nothing is prepared in {data_dir}; the first run prepares MNIST")
        return
    rows = [["dataset", "examples", "image", "classes", "sha256", "disk"]]
    for each in found:
        examples = ", ".join(f"{split} {count:,}" for split, count in (each.examples or {}).items()) or "-"
        shape = _size(each.image_shape) if each.image_shape else "-"
        rows.append(
            [each.name, examples, shape, str(each.classes or "-"), (each.sha256 or "-")[:8], _bytes(each.disk_bytes)]
        )
    say(table(rows, numbers=("classes", "disk")))
    for each in found:
        if each.problem:
            warn(f"{each.name} cannot be used: {each.problem}")


def _size(shape: Sequence[int]) -> str:
    """A size as people say it, with its channels: 28 x 28 grey."""
    height, width, channels = shape
    return f"{width} x {height} {({1: 'grey', 3: 'RGB', 4: 'RGBA'})[channels]}"


def _bytes(count: int) -> str:
    return f"{count / 10**6:,.1f} MB"


if __name__ == "__main__":
    cli.main(Args, run)
