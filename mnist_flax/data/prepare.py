"""Prepare MNIST and the datasets in its file format (IDX) as TFDS would, as ArrayRecord files, without TensorFlow.

`mnist` is made from the files in this package, so that no network is needed.
"""

import contextlib
import io
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.data.sources import read_idx
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

    progress = shown(track)
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
                images, labels = (read_idx(Path(file)) for file in files)
                for index in progress(range(len(labels)), f"preparing {name} {split}", len(labels)):
                    yield index, example(images[index], int(labels[index]))

    for leftover in (data_dir / name).glob(f"incomplete.*_{IDX_VERSION}"):
        shutil.rmtree(leftover)  # of a process that was killed
    try:
        write(Idx, name, data_dir, _source_dir(name, manual_dir))
    except (NonMatchingChecksumError, tfds.download.DownloadError) as error:
        raise InputError(f"dataset={name!r}: {first_line(error)}; try again or give --manual-dir") from error


def write(builder_class: Any, name: str, data_dir: Path, manual_dir: Path | None = None) -> Path:
    """Let a builder of TFDS write a dataset as ArrayRecord files, in silence; returns its directory."""
    import tensorflow_datasets as tfds

    builder_class.name = name
    tfds.disable_progress_bar()
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # hides what TFDS prints, not our progress
        builder.download_and_prepare(download_config=config, file_format="array_record")
    return Path(builder.data_path)


def shown(track: Track) -> Track:
    """A `track` whose progress can be seen while TFDS writes in silence; call this before."""
    stdout = sys.stdout

    def tracked(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        with contextlib.redirect_stdout(stdout):
            yield from track(items, description, total)

    return tracked


def example(image: np.ndarray, label: int) -> dict[str, Any]:
    """What a builder yields for an image uint8 [H, W] or [H, W, 1 or 3], as PNG, without TensorFlow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).save(buffer, "PNG", compress_level=1)
    buffer.seek(0)
    return {"image": buffer, "label": label}


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


def _source_dir(name: str, manual_dir: Path | None) -> Path | None:
    """Where the files are; None if they must be downloaded."""
    return manual_dir or (_EMBEDDED if name == "mnist" else None)
