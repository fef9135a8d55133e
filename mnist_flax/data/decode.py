"""Decode a dataset that TFDS has prepared, once, into .npy files that can be mapped into memory."""

import hashlib
import importlib
import io
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from mnist_flax.errors import InputError, first_line, wrong
from mnist_flax.process.files import MOST_JSON, read_json, replacing, sha256
from mnist_flax.process.terminal import Track

_AGAIN = "it is prepared again (if TFDS made it, by TFDS)"
_FEATURES = "tensorflow_datasets.core.features."
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels


def find_prepared(name: str, data_dir: Path) -> Any:
    """The TFDS builder of a prepared dataset, read from its files alone.

    Raises `InputError` if there is none, or its descriptions are damaged.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    try:
        _check_files((data_dir / re.split("[/:]", name)[0]).glob(".config/*"))  # names the default config
        with error_utils.reraise_with_context(ValueError):  # what is called in it expects one
            directory = read_only_builder._find_builder_dir(name, data_dir=data_dir)
        if directory:
            _check_files(Path(directory).iterdir())
            return read_only_builder.builder_from_directory(directory)
    except Exception as error:  # ours, and TFDS's own, of any kind
        remedy = f"delete its directory there, and {_AGAIN}"
        raise wrong("dataset", name, f"is damaged in {data_dir} ({first_line(error)})", remedy) from error
    remedy = "give mnist, fashion_mnist, kmnist, or the --data-dir where TFDS prepared it"
    raise wrong("dataset", name, f"is not prepared in {data_dir}", remedy)


def _check_files(files: Iterable[Path]) -> None:
    """Raise `ValueError` or `OSError` for what TFDS must not read, in a dataset that somebody else may have made.

    TFDS imports, and so runs, whatever module features.json names; and it waits for ever for a pipe.
    """
    for path in files:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is a pipe or a device")
        if path.suffix in (".json", ".txt") and path.is_file() and path.stat().st_size > MOST_JSON:
            raise ValueError(f"{path.name} is too large")
        for found in _classes(read_json(path)) if path.name == "features.json" else ():
            if not (isinstance(found, str) and found.startswith(_FEATURES)):
                raise ValueError(f"{path.name} names {found!r:.60}, which is not TFDS's own")


def _classes(tree: Any) -> Iterator[Any]:
    """The classes that features.json names, as TFDS writes them now and as older versions did."""
    for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name in ("pythonClassName", "python_class_name", "type"):
            yield part
        yield from _classes(part)


def decode(name: str, builder: Any, decoded: Path, track: Track) -> dict[str, Any]:
    """Write every split as two .npy files, and `spec.json`, which describes them; call it with `data_dir` locked.

    Returns the description: image_shape, class_names, examples (of each split) and sha256 (of each file). Raises
    `InputError` for a dataset without uint8 images of one size, or without labels.
    """
    shape, class_names = features(name, builder)
    examples = {split: int(info.num_examples) for split, info in builder.info.splits.items()}
    with replacing(decoded) as scratch:
        scratch.mkdir()
        for split, count in examples.items():
            images, labels = _read(builder, split, count, shape, track(range(count), f"decoding {name} {split}", count))
            np.save(scratch / f"{split}-images.npy", images)
            np.save(scratch / f"{split}-labels.npy", labels)
        sums = {file.name: sha256(file) for file in sorted(scratch.glob("*.npy"))}
        spec = {"image_shape": list(shape), "class_names": class_names, "examples": examples, "sha256": sums}
        (scratch / "spec.json").write_text(json.dumps(spec | {"spec_sha256": sum_of(spec)}, indent=1))
    return spec


def sum_of(spec: dict[str, Any]) -> str:
    """The SHA-256 sum of a description: a flipped bit in it would be other names, or fewer examples."""
    rest = {name: value for name, value in spec.items() if name != "spec_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def features(name: str, builder: Any) -> tuple[tuple[int, ...], list[str]]:
    """The shape of the images and the names of the classes; raises `InputError` for another kind of dataset."""
    import tensorflow_datasets as tfds

    features: dict[str, Any] = dict(getattr(builder.info.features, "items", dict)())
    image_feature, class_label = features.get("image"), features.get("label")
    if (
        not (isinstance(image_feature, tfds.features.Image) and isinstance(class_label, tfds.features.ClassLabel))
        or image_feature.np_dtype != np.uint8
        or None in (shape := cast(tuple[int, ...], image_feature.shape))
        or shape[-1] not in _MODES
    ):
        found = ", ".join(f"{key} {type(feature).__name__}{feature.shape}" for key, feature in features.items())
        raise InputError(
            f"dataset={name!r} has {found}; it needs an `image` of one size in uint8 and a `label`: choose another"
        )
    if odd := [label for label in class_label.names if not label.isprintable()]:
        raise wrong("dataset", name, f"has a class {odd[0]!r:.60}", "choose one whose names can be printed")
    return shape, class_label.names


def _read(
    builder: Any, split: str, count: int, shape: tuple[int, ...], positions: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """All `count` images and labels of a split, in order."""
    damaged = InputError(f"{builder.data_path} is damaged: delete it, and {_AGAIN}")
    try:
        images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
    except (MemoryError, ValueError):
        problem = f"{builder.data_path} has {count:,} images of {shape}, more than fit into memory"
        raise InputError(f"{problem}; choose another --dataset") from None
    try:
        examples = _examples(builder, split)
        for position in positions:
            images[position], labels[position] = next(examples)
        if next(examples, None) is not None:
            raise damaged
    except Exception as error:  # of protobuf, Pillow, struct, and of numbers that do not fit
        if isinstance(error, OSError) and error.errno:  # the disk's
            raise
        raise damaged from error
    return images, labels


def _examples(builder: Any, split: str) -> Iterator[tuple[np.ndarray, int]]:
    """Decode a split in order, from ArrayRecord or TFRecord files (TFDS reads the latter with TensorFlow only)."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    # Imported by name, since a type checker does not see the attributes of a generated module.
    generated: Any = importlib.import_module("tensorflow_datasets.proto")
    parse = generated.tf_example_pb2.Example.FromString
    shape = builder.info.features["image"].shape
    files = [str(file) for file in builder.info.splits[split].filepaths]
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        source = ArrayRecordDataSource(files)
        records = iter(source.__getitems__(range(len(source))))
    else:
        records = (record for file in files for record in _tfrecords(file))
    for record in records:
        # This takes a third of the time of TFDS's decoder, which is written for features of any kind.
        feature = parse(record).features.feature
        image = Image.open(io.BytesIO(feature["image"].bytes_list.value[0]), formats=("PNG", "JPEG"))
        if image.size != (shape[1], shape[0]):  # look before decoding: it may claim to be huge
            raise ValueError(f"an image of {image.size}")
        yield np.asarray(image.convert(_MODES[shape[-1]])).reshape(shape), feature["label"].int64_list.value[0]


def _tfrecords(file: str) -> Iterator[bytes]:
    """The records of a TFRecord file: uint64 length, uint32 CRC of it, data, uint32 CRC of the data."""
    from tensorboardX.record_writer import masked_crc32c

    with open(file, "rb") as stream:
        while header := stream.read(12):
            length, crc = struct.unpack("<QI", header)
            if crc != masked_crc32c(header[:8]) or length > os.fstat(stream.fileno()).st_size:
                raise ValueError("a record's length is damaged")
            record = stream.read(length)
            if stream.read(4) != struct.pack("<I", masked_crc32c(record)):
                raise ValueError("a record is damaged")
            yield record
