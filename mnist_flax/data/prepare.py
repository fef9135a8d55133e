"""Prepare MNIST and the datasets in its file format (IDX) as TFDS would, as ArrayRecord files, without TensorFlow.

`mnist` is made from the files in this package, so that no network is needed.
"""

import contextlib
import gzip
import io
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.errors import InputError, first_line
from mnist_flax.process.files import sha256
from mnist_flax.process.terminal import Track

# The names of their TFDS builders, which need TensorFlow to read IDX files.
IDX_DATASETS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
IDX_VERSION = "3.0.1"
IDX_EXAMPLES = {"train": 60_000, "test": 10_000}
_URLS = {  # as in checksums.tsv
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "kmnist": "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
}
_EMBEDDED = Path(__file__).parent / "mnist"


def prepared_dir(name: str, data_dir: Path) -> Path:
    """Where TFDS writes an IDX dataset."""
    return data_dir / name / IDX_VERSION


def is_prepared(name: str, data_dir: Path) -> bool:
    """Whether an IDX dataset is prepared, in any file format."""
    return (prepared_dir(name, data_dir) / "dataset_info.json").exists()


def prepare(name: str, data_dir: Path, manual_dir: Path | None, track: Track) -> None:
    """Write an IDX dataset as TFDS would: the same examples, in the same order. Call it with `data_dir` locked.

    `manual_dir` has the four canonical files, else they are downloaded. Raises `InputError` if a file is missing,
    damaged or cannot be downloaded, and `OSError` if `data_dir` cannot be written.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.image_classification import mnist

    with registered.skip_registration():

        class Idx(getattr(mnist, IDX_DATASETS[name])):
            """TFDS's builder, but numpy reads the files. TFDS finds `checksums.tsv` next to this module."""

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                generators = {}
                for split, stem in (("train", "train"), ("test", "t10k")):
                    urls = [f"{self.URL}{stem}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1")]
                    generators[split] = self._generate_examples(dl_manager.download(urls), split)
                return generators

            def _generate_examples(self, files: list[Path], split: str) -> Iterator[tuple[int, Any]]:
                images, labels = (np.frombuffer(gzip.decompress(Path(f).read_bytes()), np.uint8) for f in files)
                images, labels = images[16:].reshape(-1, 28, 28), labels[8:]  # after the headers
                with contextlib.redirect_stdout(stdout):
                    for index in track(range(len(labels)), f"preparing {name} {split}", len(labels)):
                        yield index, {"image": _png(images[index]), "label": int(labels[index])}

    for leftover in (data_dir / name).glob(f"incomplete.*_{IDX_VERSION}"):
        shutil.rmtree(leftover)  # of a process that was killed
    Idx.name = name
    tfds.disable_progress_bar()
    builder = Idx(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=_source_dir(name, manual_dir), try_download_gcs=False)
    stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides what TFDS prints, not our progress
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except (NonMatchingChecksumError, tfds.download.DownloadError) as error:
        raise InputError(f"dataset={name!r}: {first_line(error)}; try again or give --manual-dir") from error


def check_sources(name: str, manual_dir: Path | None) -> None:
    """Check files and URLs before anything is written, within seconds; TFDS would retry a download for minutes."""
    manual_dir = _source_dir(name, manual_dir)
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
        if not path.is_file() or not os.access(path, os.R_OK):
            raise InputError(f"manual_dir={str(manual_dir)!r} lacks {file}; put the file from {url} there")
        if sha256(path) != expected:
            raise InputError(f"{path} is damaged or not of {name}: its SHA-256 is not {expected}; get {url}")


def _png(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    buffer.seek(0)
    return buffer


def _source_dir(name: str, manual_dir: Path | None) -> Path | None:
    """Where the files are; None if they must be downloaded."""
    return manual_dir or (_EMBEDDED if name == "mnist" else None)
