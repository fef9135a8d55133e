"""Turn a picture of a digit, of any size and colour, into an image like MNIST's: uint8 [28, 28], light on dark.

The steps are those of LeCun et al., Proc. IEEE 86, 1998: the digit is scaled, with anti-aliasing, to fit into a box of
20 x 20 pixels, and shifted until its centre of mass is the centre of 28 x 28 pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from mnist_flax.data.pictures import opaque, open_picture
from mnist_flax.errors import InputError

SIDE, BOX = 28, 20
MOST_BYTES = 2**29  # of a file: the most pixels in 16 bits, not compressed, and more
_FAINTEST = 24  # of 255: the least difference between ink and background
_NOISE = 0.1  # of the strongest ink: anything weaker is background


def read(source: Path | bytes) -> np.ndarray:
    """The digit in a PNG or JPEG file, or in its bytes: uint8 [28, 28].

    Raises `InputError` if the file cannot be read, is empty, is not such a picture, is huge or animated, or is blank.
    Of what never ends, such as a device, it reads `MOST_BYTES` and one more.
    """
    name = "-" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else _start_of(source)
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{name} is larger than {MOST_BYTES // 2**20} MiB; give a PNG or JPEG picture of one digit")
    try:
        return as_mnist(np.asarray(opaque(open_picture(content)).convert("L")))
    except InputError as error:
        raise InputError(f"{name} {error}; give a PNG or JPEG picture of one digit") from None


def _start_of(path: Path) -> bytes:
    content = bytearray()
    with path.open("rb") as file:  # in pieces, since Python sets aside what it is asked to read
        while len(content) <= MOST_BYTES and (piece := file.read(2**20)):
            content += piece
    return bytes(content)


def as_mnist(grey: np.ndarray) -> np.ndarray:
    """Normalise a grey picture, uint8 [H, W], dark on light or light on dark, to uint8 [28, 28].

    Raises `InputError` if nothing stands out from its border.
    """
    background = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    ink = np.abs(grey.astype(np.float32) - background)  # [H, W]
    if ink.max() < _FAINTEST:
        raise InputError("shows nothing: no pixel stands out from its border")
    ink = np.where(ink < _NOISE * ink.max(), 0, ink * (255 / ink.max()))
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(ink).resize((width, height), resampling))
    small = np.clip(small * (255 / small.max()), 0, 255)

    def start(weights: np.ndarray) -> int:
        """Where to place it: its centre of mass in the middle, or as near to it as keeps all of it inside."""
        centre = (weights * np.arange(len(weights))).sum() / weights.sum()
        return int(np.clip(round(SIDE / 2 - centre), 0, SIDE - len(weights)))

    top, left = start(small.sum(axis=1)), start(small.sum(axis=0))
    out = np.zeros((SIDE, SIDE), np.uint8)
    out[top : top + height, left : left + width] = np.round(small)
    return out
