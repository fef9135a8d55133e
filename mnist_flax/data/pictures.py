"""Open PNG and JPEG files as pictures without transparency, and fit pictures to one size.

picture = fit(opaque(open_picture(Path("cat.jpg").read_bytes())), 28)  # Pillow's, "L" or "RGB", 28 x 28
"""

import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_flax.errors import InputError

_MOST_PIXELS = 50_000_000


def open_picture(content: bytes) -> Image.Image:
    """Decode a PNG or JPEG file, turned as its EXIF data says.

    Raises `InputError`, with the reason alone, if it is empty, no such picture, damaged, huge or animated.
    """
    if not content:
        raise InputError("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of sizes, for which our limit is lower, and of odd metadata
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
                frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # phones add a preview
                if frames > 1:
                    raise InputError(f"is animated ({frames} frames)")
                if picture.width * picture.height > _MOST_PIXELS:
                    size = f"{picture.width} x {picture.height} pixels"
                    raise InputError(f"is huge ({size}), above {_MOST_PIXELS // 10**6} million")
                return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise InputError("is not a PNG or JPEG picture") from None
    except (OSError, ArithmeticError, LookupError, SyntaxError, TypeError, ValueError, struct.error,
            Image.DecompressionBombError) as error:  # fmt: skip
        raise InputError(f"is damaged ({str(error)[:80]})") from None


def opaque(picture: Image.Image) -> Image.Image:
    """As `L` or `RGB`; transparent pixels become black or white, whichever differs more from the rest."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    layers = picture.convert("RGBA")
    luminance, alpha = np.asarray(layers.convert("L")), np.asarray(layers.getchannel("A"))
    level = 0 if not alpha.any() or np.average(luminance, weights=alpha) > 127 else 255
    background = Image.new("RGBA", picture.size, (level, level, level, 255))
    return Image.alpha_composite(background, layers).convert("RGB")


def is_grey(picture: Image.Image) -> bool:
    """Whether an `L` or `RGB` picture has no colour."""
    pixels = np.asarray(picture)
    return pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())


def fit(picture: Image.Image, side: int) -> Image.Image:
    """Scale an `L` or `RGB` picture into a square, its proportions kept, with Pillow's anti-aliased bilinear filter.

    It is centred, and what it does not cover is filled with the median colour of its border.
    """
    if picture.size == (side, side):
        return picture
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = tuple(int(level) for level in np.median(border, axis=0))
    width, height = (max(1, round(length * side / max(picture.size))) for length in picture.size)
    square = Image.new(picture.mode, (side, side), color)
    small = picture.resize((width, height), Image.Resampling.BILINEAR)
    square.paste(small, ((side - width) // 2, (side - height) // 2))
    return square
