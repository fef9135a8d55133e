"""Damage files at random: bytes, JSON, Python text, pictures, records."""

import binascii
import copy
import io
import json
import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

# What hostile or careless hands write where a number or a name belongs. Two stand for raw text: see `damage_json`.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(10**40), 10**400, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), "", "0", "a\nb", "a\rb", "\x1b[31mred", "\x1b]0;title\x07", "\0", "\ud800", "\u202e",
    "../../up", "/dev/zero", "/", "~nobody/x", "<script>alert(1)</script>", "[/x]", "$\\frac$", "%s{0}", "x" * 100_000,
    "numpy", "mnist", "train", "8" * 400, [], {}, [[]], {"": {}}, [None], [1] * 70, [0.5], list(range(1000)),
    {"config": {}}, "@deep", "@digits",
]  # fmt: skip
CHUNKS = [b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"pHYs", b"acTL", b"fcTL", b"cHRM"]
WORDS = ["10**5000", "-1", "0", "10**9", "1e400", "float('nan')", "None", "...", "'a\\nb'", "b'x'", "{}", "[]", "()",
         "object()", "lambda *_: 0", "1/0", "range(3)", "{1: 2}", "[[1]]", "set()", "int", "'\\x1b[31m'", "1j", "x",
         "yield", "return", "import nothing", ")", "'''", "\t", "\0", "raise SystemExit(3)",
         "[" * 300, "-" * 9000 + "1", "print", "Config", "Config()", "Config(epochs=0)"]  # fmt: skip


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, cut, insert, repeat or exchange parts of a file; or replace it."""
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, length = rng.randrange(len(out) + 1), rng.choice([1, 1, 2, 4, 8, 100])
        match rng.randrange(7):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at:]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = rng.choice([rng.randbytes(length), b"\0" * length, b"\xff" * length])
            case 5:
                out[at : at + length] = rng.choice([rng.randbytes(length), b"\0" * length, b"\xff" * length])
            case _:
                out[at:at] = out[at : at + 10 * length]
    return rng.choice([b"", rng.randbytes(50), b"\0" * 50]) if rng.random() < 0.02 else bytes(out)


def damage_json(rng: random.Random, text: str) -> bytes:
    """Change, remove, exchange, rename or double fields; or damage the text; numbers and depths without an end."""
    if rng.random() < 0.15:
        return damage_bytes(rng, text.encode())
    if rng.random() < 0.05:
        return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7", "cp500"]))
    tree = {"": json.loads(text)}
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        spots = [*_spots(tree)]
        (parent, key), (other, its) = rng.choice(spots), rng.choice(spots)
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                parent[key] = copy.deepcopy(rng.choice(ODD))  # a later change must not reach ODD
            case 4 if isinstance(parent, dict) and parent is not tree:
                parent[rng.choice([f"{key}\n", str(rng.choice(ODD))[:300], "\x1b[31m"])] = parent.pop(key)
            case 5 if parent is not tree:
                del parent[key]
            case 6:
                parent[key] = copy.deepcopy(other[its])
            case _:
                parent[key] = [parent[key]]
    text = json.dumps(tree[""], ensure_ascii=rng.random() < 0.5)
    depth = rng.choice([20, 300, 900, 950, 980, 100_000])
    text = text.replace('"@deep"', "[" * depth + "]" * depth).replace('"@digits"', "1" + "0" * rng.choice([400, 9000]))
    if rng.random() < 0.1:  # a field twice
        text = text.replace("{", '{"config": 3, "format": 1, "seed": 0, ', rng.choice([1, 1, 2]))
    return text.encode(errors="surrogatepass")


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a JSON tree, as the object or list that holds it, and its key."""
    for key in [*tree] if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _spots(tree[key])


def damage_python(rng: random.Random, text: str) -> bytes:
    """Exchange words of a Python file; or damage its text. It never calls anything that the file does not call."""
    if rng.random() < 0.2:
        return damage_bytes(rng, text.encode())
    for _ in range(rng.choice([1, 1, 2, 3])):
        words = [*re.finditer(r"\w+|[^\w\s]+|\n", text)]
        start, end = rng.choice(words).span()
        text = text[:start] + rng.choice([*WORDS, "", words[rng.randrange(len(words))].group()]) + text[end:]
    return text.encode(errors="surrogatepass")


def other_than_a_file(rng: random.Random, path: Path) -> None:
    """Put something else in a file's place: a directory, a pipe, a link, a device."""
    content = path.read_bytes()
    path.unlink()
    match rng.randrange(6):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to(rng.choice(["/dev/zero", "/dev/full", "nowhere", path.name, ".."]))
        case 3:
            path.touch()
        case 4:
            path.touch()
            os.truncate(path, rng.choice([2**26, 2**29]))  # takes no space
        case _:
            path.with_name(path.name + "x").write_bytes(content)


def picture(rng: random.Random) -> bytes:
    """A picture of random kind, size and depth, as a rule damaged; some claim to be huge."""
    size = rng.choice([(28, 28), (28, 28), (1, 1), (1, 300), (300, 1), (97, 61), (500, 400)])
    mode = rng.choice(["L", "L", "RGB", "RGBA", "P", "1", "LA", "I;16", "CMYK", "YCbCr", "F"])
    image = Image.effect_noise(size, rng.choice([0, 9, 90]))
    image = image.convert("I").point(lambda v: v * 257).convert(mode) if mode == "I;16" else image.convert(mode)
    kind = rng.choice(["PNG", "PNG", "JPEG", "JPEG", "GIF", "BMP", "TIFF", "MPO", "WEBP", "PPM", "ICO", "EPS"])
    options: dict[str, Any] = {}
    if rng.random() < 0.2:
        options["exif"] = image.getexif()
        options["exif"][0x0112] = rng.choice([0, 3, 6, 8, 9, 65535])
    if rng.random() < 0.1 and kind in ("PNG", "GIF", "MPO", "WEBP", "TIFF"):
        options |= {"save_all": True, "append_images": [image] * rng.choice([1, 20])}
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError, SystemError, KeyError, TypeError):  # not every kind holds every mode
        file, kind = io.BytesIO(), "PNG"
        image.convert("RGB").save(file, kind)
    content = file.getvalue()
    if kind == "PNG" and rng.random() < 0.5:
        return _damaged_chunks(rng, content)
    return damage_bytes(rng, content) if rng.random() < 0.9 else content


def _damaged_chunks(rng: random.Random, png: bytes) -> bytes:
    """A PNG with damaged chunks, added ones, or another size, whose checksums are right."""
    out, at = bytearray(png[:8]), 8
    while at + 8 <= len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"IHDR" and rng.random() < 0.5:
            sizes = [0, 1, 28, 7000, 20_000, 2**31 - 1, 2**32 - 1]
            body = struct.pack(">II", rng.choice(sizes), rng.choice(sizes)) + body[8:]
        elif rng.random() < 0.4:
            body = damage_bytes(rng, body)
        extra = [(rng.choice(CHUNKS), rng.randbytes(rng.choice([0, 1, 4, 30])))] if rng.random() < 0.3 else []
        for name, content in [(kind, body), *extra]:
            out += struct.pack(">I", len(content)) + name + content
            out += struct.pack(">I", binascii.crc32(name + content))
    return bytes(out)
