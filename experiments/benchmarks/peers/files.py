"""The canonical MNIST files, as every peer reads them."""

import gzip
from pathlib import Path

import numpy as np

MNIST = Path(__file__).parents[3] / "mnist_flax" / "data" / "mnist"


def read(stem: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [N, 784] in [0, 1] and labels int64 [N]; `stem` is train or t10k."""
    images = np.frombuffer(gzip.decompress((MNIST / f"{stem}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((MNIST / f"{stem}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 784).astype("float32") / 255, labels.astype(np.int64)
