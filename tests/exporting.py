"""The export command for tests: its formats, and a way to call it."""

import sys

import pytest

from mnist_flax import console, export, export_keras, export_onnx, export_page, export_stablehlo

MODULES = {"keras": export_keras, "onnx": export_onnx, "stablehlo": export_stablehlo, "html": export_page}
KINDS = {".keras": "keras", ".h5": "keras", ".onnx": "onnx", ".stablehlo": "stablehlo", ".html": "html"}


def run_here(
    args: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["mnist_flax.export", *map(str, args)])
    with pytest.raises(SystemExit) as exit_:
        console.main(export.Args, export.run)
    return int(exit_.value.code or 0), *capsys.readouterr()
