"""The tables of docs/settings.md, made from the settings themselves.

python tests/docs/settings_table.py  # writes them into the page
"""

import ast
import inspect
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # this checkout, wherever it is installed from

from mnist_flax import config
from mnist_flax.config import Config, Hyperparams, StaticConfig
from mnist_flax.errors import InputError
from mnist_flax.settings import SHARED, Setting, settings_of

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
TABLE = re.compile(r"<!-- settings of (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
KINDS = {int: "whole number", float: "number", str: "text", bool: "flag", tuple: "whole numbers"}
CLASSES = {cls.__name__: cls for cls in (Hyperparams, StaticConfig, Config)}


def table(cls: type) -> str:
    """A row for each setting that `cls` itself defines."""
    inherited = {name for base in cls.__mro__[1:-1] for name in settings_of(base)}
    texts = docstrings(cls)
    lines = ["| flag | type | default | range | meaning |", "|---|---|---|---|---|"]
    for name, setting in settings_of(cls).items():
        if name not in inherited:
            shared = " The same for all members of a sweep." * (SHARED in setting.marks)
            cells = [f"`--{name.replace('_', '-')}`", KINDS[setting.kind], default_of(setting), range_of(setting)]
            lines.append(f"| {' | '.join([*cells, texts[name] + shared])} |")
    return "\n".join(lines) + "\n"


def docstrings(cls: type) -> dict[str, str]:
    """The text below each field of a class of `config`, on one line."""
    [body] = [
        node.body
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    ]
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }  # fmt: skip


def default_of(setting: Setting) -> str:
    """As on the command line."""
    value = setting.default
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{words}`" if words else "none"


def range_of(setting: Setting) -> str:
    """What the error message for a wrong value says to give."""
    try:
        setting.check(None, Config())
    except InputError as error:
        return str(error).partition("; give ")[2]
    raise AssertionError(f"{setting.name} takes anything")


def with_tables(page: str) -> str:
    """The page with every table made again."""
    return TABLE.sub(lambda m: f"<!-- settings of {m[1]} -->\n{table(CLASSES[m[1]])}<!-- end -->", page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
