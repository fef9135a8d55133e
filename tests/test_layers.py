"""Imports go down only, and stay out of the way."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mnist_flax"
LAYERS = {
    "config": 0, "model": 0, "metrics": 0, "prepare": 0, "decode": 0, "parallel": 0, "checkpoint": 0, "writer": 0,
    "console": 0, "overrides": 0, "digits": 0, "folded": 0, "page": 0,
    "state": 1, "splits": 1, "sweepdir": 1, "record": 1, "report": 1,
    "steps": 2, "data": 2, "experiment": 2, "workdir": 2, "canvas": 2, "storage": 2, "graph": 2,
    "ledger": 3, "stages": 4, "experiment_file": 3, "fit": 3, "evaluate": 4, "search_figures": 3, "scribe": 3,
    "log": 4, "events": 4, "figures": 4, "run_figures": 3,
    "train": 5, "desk": 5, "population": 4, "members": 5,
    "board": 6,
    "worker": 7, "predict": 5,
    "sweep": 8,
    "export_keras": 2, "export_onnx": 2, "export_stablehlo": 2, "export_page": 2, "export": 5,
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "mnist_flax" else {base}
    return {name.split(".")[1] for name in found if name.startswith("mnist_flax.")} & LAYERS.keys()


def test_every_module_has_a_layer() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == LAYERS.keys()


@pytest.mark.parametrize("module", LAYERS)
def test_imports_go_down(module: str) -> None:
    for name in imports_of(PACKAGE / f"{module}.py"):
        below = LAYERS[name] < LAYERS[module] or name == "config"
        assert below, f"{module} (layer {LAYERS[module]}) imports {name} (layer {LAYERS[name]})"


def test_no_file_outgrows_a_reader() -> None:
    long = {path.name: n for path in PACKAGE.glob("*.py") if (n := len(path.read_text().splitlines())) > 220}
    assert not long


def fastest(code: list[str], tries: int = 3) -> float:
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run([sys.executable, *code], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.mark.parametrize("module", ["train", "evaluate", "predict", "sweep", "export"])
def test_help_is_fast(module: str) -> None:
    assert fastest(["-m", f"mnist_flax.{module}", "--help"]) < 0.5


def test_import_is_fast() -> None:
    assert fastest(["-c", "import mnist_flax"]) - fastest(["-c", "pass"]) < 0.1


def test_no_tensorflow_or_torch_is_imported(finished: Path) -> None:
    code = f"import sys, mnist_flax; mnist_flax.load({str(finished)!r}); import mnist_flax.train, mnist_flax.prepare;"
    code += "assert not {'tensorflow', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
