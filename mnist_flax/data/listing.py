"""List the datasets that are prepared in a data directory.

prepared_datasets(data_dir)  # [PreparedDataset(name="mydigits", examples={"train": 240, "test": 60}, ...)]
"""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from mnist_flax.data.decode import features, find_prepared
from mnist_flax.errors import InputError
from mnist_flax.process import files


@dataclass
class PreparedDataset:
    """One dataset in a data directory; what is not known is None."""

    name: str  # as --dataset takes it
    directory: str
    disk_bytes: int  # its decoded copy included
    examples: dict[str, int] | None = None  # of each split
    image_shape: tuple[int, ...] | None = None  # (H, W, C)
    classes: int | None = None
    sha256: str | None = None  # of the user's images; see `_checksum`
    problem: str | None = None  # why it cannot be opened


def prepared_datasets(data_dir: Path) -> list[PreparedDataset]:
    """Every dataset in a data directory, by name; writes nothing."""
    found = [*data_dir.glob("[!.]*/*/dataset_info.json"), *data_dir.glob("[!.]*/*/*/dataset_info.json")]
    return [_describe(path.parent, data_dir) for path in sorted(found) if not path.parent.name.startswith("incomplete")]


def _describe(directory: Path, data_dir: Path) -> PreparedDataset:
    name = "/".join(directory.relative_to(data_dir).parts[:-1])
    disk_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    described = PreparedDataset(name, str(directory), disk_bytes, sha256=_checksum(directory))
    try:
        builder = find_prepared(f"{name}:{directory.name}", data_dir)
        examples = {split: int(info.num_examples) for split, info in builder.info.splits.items()}
        described.examples = dict(sorted(examples.items(), key=lambda split: -split[1]))
        described.image_shape, class_names = features(name, builder)
        described.classes = len(class_names)
    except InputError as error:
        described.problem = str(error)
    return described


def _checksum(directory: Path) -> str | None:
    """One SHA-256 for the images that a dataset was made from, or None if another program made it.

    Of one file it is that file's own; of several, that of the lines `sum  name`, in the order of their names.
    """
    with contextlib.suppress(OSError, ValueError):
        metadata = files.read_json(directory / "metadata.json")
        if files.has_fields(metadata, {"sha256": dict}):
            sums = [f"{sha}  {name}\n" for name, sha in sorted(metadata["sha256"].items())]
            return sums[0].split()[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return None
