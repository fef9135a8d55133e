"""Imports go down only, and what a command does not need is not imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mnist_flax"
# From the bottom to the top: a module imports from its own place, from places below it, and from the core's `errors`.
WINGS = [
    "process",
    "data",
    "core",
    "workdir",
    "figures",
    "monitor",
    "analysis",
    "inference",
    "evaluate",
    "train",
    "sweep",
    "export",
    "compare",
    "predict",
]
CORE = ["errors", "settings", "config", "model", "optimizer", "program", "state", "metrics", "distortions", "steps",
        "placement", "compiled", "drivers", "loop"]  # fmt: skip
ALLOWED = {
    "process": {"errors"},
    "data": {"errors", "process"},
    "core": {"data.batches"},
    "workdir": {"core", "process"},
    "figures": {"core", "process"},
    "monitor": {"core", "data", "process", "workdir", "figures"},
    "analysis": {"core", "process", "figures"},
    "inference": {"core", "data", "process", "workdir"},
    "sweep": {"core", "data", "process", "workdir", "analysis", "monitor", "train"},
    "export": {"core", "process", "workdir", "inference"},
    "evaluate": {"core", "data", "process", "workdir", "figures", "inference"},
    "train": {"core", "data", "process", "workdir", "monitor", "inference"},
    "compare": {"core", "data", "process", "workdir", "figures", "analysis", "inference"},
    "predict": {"core", "data", "process", "workdir", "figures", "inference"},
}


def modules() -> dict[str, Path]:
    """Every module by its name below the package, such as `config` or `data.splits`."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


MODULES = modules()


def place_of(module: str) -> str:
    first, _, rest = module.partition(".")
    if rest:
        return first
    return "core" if first in CORE else "inference" if first == "inference" else "predict"


def imports_of(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {f"{node.module}"}
    return {name.removeprefix("mnist_flax.") for name in found} & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    place = place_of(module)
    for name in imports_of(module):
        inside = place_of(name) == place and place != "predict"
        assert inside or {name, place_of(name)} & ALLOWED[place], f"{module} imports {name}"
    if module in CORE:  # in reading order
        assert all(CORE.index(name) < CORE.index(module) for name in imports_of(module) if name in CORE)


def test_the_top_is_short_and_wings_have_one_line() -> None:
    assert len([module for module in MODULES if "." not in module]) <= 16
    for path in PACKAGE.glob("*/__init__.py"):
        [docstring] = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), path


def test_no_file_and_no_function_outgrows_a_reader() -> None:
    for module, path in MODULES.items():
        assert len(path.read_text().splitlines()) <= 220, module
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno < 50, f"{module}.{node.name}"


def imported_by(*code: str) -> set[str]:
    """The top-level modules that a Python process has imported at its end."""
    hook = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    line = [sys.executable, "-c", hook + "; ".join(code)]
    result = subprocess.run(line, capture_output=True, text=True)
    return {name.partition(".")[0] for name in result.stderr.splitlines()[-1].split()}


HEAVY = {"jax", "flax", "optax", "orbax", "tensorflow_datasets", "matplotlib", "optuna", "scipy", "keras", "onnx",
         "tensorflow", "torch"}  # fmt: skip


@pytest.mark.parametrize("module", ["train", "evaluate", "predict", "sweep", "export", "data", "compare"])
def test_help_imports_nothing_heavy(module: str) -> None:
    run = (
        f"sys.argv = ['{module}', '--help']; import runpy; runpy.run_module('mnist_flax.{module}', run_name='__main__')"
    )
    assert not HEAVY & imported_by(run)


def test_importing_the_package_imports_nothing() -> None:
    assert not (HEAVY | {"numpy", "tyro"}) & imported_by("import mnist_flax")


def test_the_writer_process_has_no_jax() -> None:
    assert not (HEAVY - {"matplotlib"}) & imported_by("import mnist_flax.monitor.writer_process")


def test_loading_imports_neither_tensorflow_nor_torch(finished: Path) -> None:
    code = f"import mnist_flax; mnist_flax.load({str(finished)!r})", "import mnist_flax.train, mnist_flax.data.prepare"
    assert {"jax"} <= (imported := imported_by(*code)) and not {"tensorflow", "torch"} & imported
