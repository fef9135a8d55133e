"""Prepare datasets as TFDS would, without TensorFlow, and decode them once.

    decoded = prepare("mnist", data_dir, manual_dir=None, track=track)  # .npy files, spec.json

For `mnist` the files in this package are the source, so that no network is needed.
"""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import shutil
import struct
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import InputError

# They share MNIST's file format; the stock TFDS builders need TensorFlow to read it.
IDX_DATASETS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
IDX_VERSION = "3.0.1"
_URLS = {  # as in checksums.tsv
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
}
_EMBEDDED = Path(__file__).parent / "mnist"

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def prepare(name: str, data_dir: Path, manual_dir: Path | None, track: Track, is_sound: Callable[[Path], bool]) -> Path:
    """Prepare, download or repair what is missing of a dataset.

    Args:
      name: `mnist`, `fashion_mnist`, `kmnist`, or what TFDS has prepared in `data_dir`, such as `emnist/digits`.
      data_dir: where prepared datasets live, laid out as TFDS does.
      manual_dir: a directory with the four canonical files of an IDX dataset, used instead of its URLs.
      track: shows progress; takes an iterable, what is done and how many there are, and returns the iterable.
      is_sound: whether the decoded copy in a directory is there and whole.

    Returns:
      The directory of the decoded copy: `<split>-images.npy`, `<split>-labels.npy` and `spec.json`.

    Raises:
      InputError: there is no such dataset, or its files are damaged or cannot be fetched.
      OSError: `data_dir` cannot be written.
    """
    if name in IDX_DATASETS and not (data_dir / name / IDX_VERSION / "dataset_info.json").exists():
        manual_dir = manual_dir or (_EMBEDDED if name == "mnist" else None)
        _check_sources(name, manual_dir)
        with _lock(data_dir):
            if not (data_dir / name / IDX_VERSION).exists():
                for leftover in (data_dir / name).glob(f"{IDX_VERSION}.incomplete*"):
                    shutil.rmtree(leftover)  # we hold the lock: whoever wrote it was killed
                _prepare_idx(name, data_dir, manual_dir, track)
    builder = _find_prepared(name, data_dir)
    decoded = Path(builder.data_path) / "decoded"
    if not is_sound(decoded):
        with _lock(data_dir):
            if not is_sound(decoded):
                _decode(name, builder, decoded, track)
    return decoded


def sha256(file: Path) -> str:
    """The SHA-256 sum of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """One process prepares at a time; the others wait and find the work done."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".mnist_flax.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_sources(name: str, manual_dir: Path | None) -> None:
    """Fail before anything is written, and within seconds where TFDS would retry a download for minutes."""
    rows = [line.split("\t") for line in (Path(__file__).parent / "checksums.tsv").read_text().splitlines()]
    sources = [(url, expected, file) for url, _, expected, file in rows if url.startswith(_URLS[name])]
    if not manual_dir:
        try:
            urllib.request.urlopen(sources[0][0], timeout=10).close()
        except OSError as error:
            files = ", ".join(file for *_, file in sources)
            raise InputError(
                f"dataset={name!r} cannot be downloaded ({error}); put {files} in a directory and give --manual-dir"
            ) from error
        return
    for url, expected, file in sources:
        path = manual_dir / file
        if not path.is_file():
            raise InputError(f"manual_dir={str(manual_dir)!r} lacks {file}; put the file from {url} there")
        if sha256(path) != expected:
            raise InputError(f"{path} is damaged or not of {name}: its SHA-256 is not {expected}; get {url}")


def _prepare_idx(name: str, data_dir: Path, manual_dir: Path | None, track: Track) -> None:
    """Write a dataset in MNIST's file format as TFDS would: the same examples, in the same order."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.image_classification import mnist

    with registered.skip_registration():

        class Idx(getattr(mnist, IDX_DATASETS[name])):
            """TFDS's own builder, but numpy reads the files; `checksums.tsv` beside this module is where it looks."""

            def _split_generators(self, dl_manager: Any) -> list[Any]:
                generators = []
                for split, stem in (("train", "train"), ("test", "t10k")):
                    urls = [f"{self.URL}{stem}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
                    files = dl_manager.download(urls)
                    generators.append(tfds.core.SplitGenerator(name=split, gen_kwargs={"files": files, "split": split}))
                return generators

            def _generate_examples(self, files: list[Path], split: str) -> Iterator[tuple[int, Any]]:
                images, labels = (np.frombuffer(gzip.decompress(Path(f).read_bytes()), np.uint8) for f in files)
                images, labels = images[16:].reshape(-1, 28, 28), labels[8:]  # behind the headers
                with contextlib.redirect_stdout(stdout):
                    for index in track(range(len(labels)), f"preparing {name} {split}", len(labels)):
                        yield index, {"image": _png(images[index]), "label": int(labels[index])}

    Idx.name = name
    tfds.disable_progress_bar()
    builder = Idx(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides what TFDS prints, not our progress
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except (NonMatchingChecksumError, tfds.download.DownloadError) as error:
        raise InputError(f"dataset={name!r}: {str(error).splitlines()[0]}; try again or give --manual-dir") from error


def _png(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    buffer.seek(0)
    return buffer


def _find_prepared(name: str, data_dir: Path) -> Any:
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except registered.DatasetNotFoundError:
        known = ", ".join(IDX_DATASETS)
        raise InputError(
            f"dataset={name!r} is not prepared in {data_dir}; give {known}, or the --data-dir where TFDS prepared it"
        ) from None


def _decode(name: str, builder: Any, decoded: Path, track: Track) -> None:
    """Write every split as two .npy files and their description, then make them visible at once."""
    import tensorflow_datasets as tfds

    features: dict[str, Any] = dict(getattr(builder.info.features, "items", dict)())
    image, label = features.get("image"), features.get("label")
    if (
        not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel))
        or image.np_dtype != np.uint8
        or None in image.shape
    ):
        found = ", ".join(f"{key} {type(feature).__name__}{feature.shape}" for key, feature in features.items())
        raise InputError(
            f"dataset={name!r} has {found}; it needs an `image` of one size in uint8 and a `label`: choose another"
        )
    scratch = decoded.with_name("decoded.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # we hold the lock: whoever wrote it was killed
    scratch.mkdir()
    examples = {split: int(info.num_examples) for split, info in builder.info.splits.items()}
    for split, count in examples.items():
        images, labels = np.empty((count, *image.shape), np.uint8), np.empty(count, np.int32)
        for i, example in enumerate(track(_examples(builder, split), f"decoding {name} {split}", count)):
            images[i], labels[i] = example
        np.save(scratch / f"{split}-images.npy", images)
        np.save(scratch / f"{split}-labels.npy", labels)
    spec = {
        "image_shape": image.shape,
        "class_names": label.names,
        "examples": examples,
        "sha256": {file.name: sha256(file) for file in sorted(scratch.glob("*.npy"))},
    }
    (scratch / "spec.json").write_text(json.dumps(spec, indent=1))
    shutil.rmtree(decoded, ignore_errors=True)  # a damaged copy
    scratch.rename(decoded)


def _examples(builder: Any, split: str) -> Iterator[tuple[np.ndarray, int]]:
    """Decode a split in order, from ArrayRecord or TFRecord files (TFDS reads the latter with TensorFlow only)."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from PIL import Image

    features = builder.info.features
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[features["image"].shape[-1]]
    files = [str(file) for file in builder.info.splits[split].filepaths]
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        source = ArrayRecordDataSource(files)
        records = iter(source.__getitems__(range(len(source))))
    else:
        records = (record for file in files for record in _tfrecords(file))
    for record in records:
        example = features.deserialize_example_np(record, decoders={"image": tfds.decode.SkipDecoding()})
        image = np.asarray(Image.open(io.BytesIO(example["image"])).convert(mode))
        yield image.reshape(features["image"].shape), example["label"]


def _tfrecords(file: str) -> Iterator[bytes]:
    """The records of a TFRecord file: uint64 length, uint32 CRC of it, data, uint32 CRC of the data."""
    with open(file, "rb") as stream:
        while header := stream.read(12):
            (length,) = struct.unpack("<Q4x", header)
            yield stream.read(length)
            stream.seek(4, io.SEEK_CUR)
