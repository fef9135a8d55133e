"""The export command for tests: its formats, and a way to call it."""

import sys

import pytest

from mnist_flax.export import __main__ as export
from mnist_flax.export import html as export_html
from mnist_flax.export import keras as export_keras
from mnist_flax.export import onnx as export_onnx
from mnist_flax.export import stablehlo as export_stablehlo
from mnist_flax.process import cli

MODULES = {"keras": export_keras, "onnx": export_onnx, "stablehlo": export_stablehlo, "html": export_html}
KINDS = {".keras": "keras", ".h5": "keras", ".onnx": "onnx", ".stablehlo": "stablehlo", ".html": "html"}


def run_here(
    args: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["mnist_flax.export", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        cli.main(export.Args, export.run)
    return int(exit_.value.code or 0), *capsys.readouterr()
