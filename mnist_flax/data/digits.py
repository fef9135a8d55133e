"""Turn a picture of a digit, of any size and colour, into an image like MNIST's: uint8 [28, 28], light on dark.

The steps are those of LeCun et al., Proc. IEEE 86, 1998: the digit is scaled, with anti-aliasing, to fit into a box of
20 x 20 pixels, and shifted until its centre of mass is the centre of 28 x 28 pixels.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_flax.errors import InputError

SIDE, BOX = 28, 20
_MOST_PIXELS = 50_000_000
_FAINTEST = 24  # of 255: the least difference between ink and background
_NOISE = 0.1  # of the strongest ink: anything weaker is background


def read(source: Path | bytes) -> np.ndarray:
    """The digit in a PNG or JPEG file, or in its bytes: uint8 [28, 28].

    Raises `InputError` if the file cannot be read, is empty, is not such a picture, is huge or animated, or is blank.
    """
    name = "-" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from None
    if not content:
        raise InputError(f"{name} is empty; give a PNG or JPEG picture of one digit")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of sizes, for which our limit is lower, and of odd metadata
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
                frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # phones add a preview
                if frames > 1:
                    raise InputError(f"{name} is animated ({frames} frames); give a picture of one digit")
                if picture.width * picture.height > _MOST_PIXELS:
                    size = f"{picture.width} x {picture.height}"
                    raise InputError(f"{name} is huge ({size} pixels); give at most {_MOST_PIXELS // 10**6} million")
                grey = _grey(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a PNG or JPEG picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is damaged ({str(error)[:80]}); give another picture") from None
    try:
        return as_mnist(grey)
    except InputError as error:
        raise InputError(f"{name} {error}") from None


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


def _grey(picture: Image.Image) -> np.ndarray:
    """Luminance, uint8 [H, W]; transparent pixels become black or white, whichever differs more from the rest."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip
        return (np.asarray(picture) // 257).astype(np.uint8)
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return np.asarray(picture.convert("L"))
    layers = picture.convert("LA")
    luminance, alpha = (np.asarray(layers.getchannel(band), np.float32) for band in ("L", "A"))
    if not alpha.any():
        return np.zeros_like(luminance, np.uint8)
    background = 0.0 if np.average(luminance, weights=alpha) > 127 else 255.0
    return np.round(background + (luminance - background) * alpha / 255).astype(np.uint8)
