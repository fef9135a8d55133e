"""What is wrong, half written or asked for wrongly never stays on disk, and is said in one line."""

import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import KINDS, MODULES, run_here

import mnist_flax
from mnist_flax.export import __main__ as export
from mnist_flax.export import onnx as export_onnx
from mnist_flax.export.network import TrainedNetwork


def shifted_by(amount: float, write: export.Write) -> export.Write:
    """A writer that gets one bias of the output layer wrong, and with it one logit."""

    def wrong(path: Path, network: TrainedNetwork, about: dict[str, Any]) -> None:
        params = {layer: dict(leaves) for layer, leaves in network.variables["params"].items()}
        params["dense_3"]["bias"] = params["dense_3"]["bias"] + np.float32(amount) * (np.arange(10) == 4)
        write(path, dataclasses.replace(network, variables=network.variables | {"params": params}), about)

    return wrong


REFUSED = [(".keras", 2e-4), (".onnx", 2e-4), (".stablehlo", 2e-4), (".html", 2e-4), (".onnx", np.nan)]


@pytest.mark.parametrize(("suffix", "amount"), REFUSED)
def test_a_wrong_file_is_refused(
    suffix: str,
    amount: float,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out, module = tmp_path / f"tiny{suffix}", MODULES[KINDS[suffix]]
    out.write_text("the good one of yesterday")
    monkeypatch.setattr(module, "write", shifted_by(amount, module.write))
    args = ["--workdir", finished, "--format", KINDS[suffix], "--out", out]
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (1, "")
    assert re.fullmatch(r"error: the .* differs from the run's by (0\.0002|nan), more than 0\.0001; .*\n", stderr)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "the good one of yesterday"


def test_a_file_is_replaced_by_one_that_is_right_to_the_tolerance(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "tiny.onnx"
    out.write_text("that of yesterday")
    monkeypatch.setattr(export_onnx, "write", shifted_by(5e-5, export_onnx.write))
    code, stdout, _ = run_here(["--workdir", finished, "--format", "onnx", "--out", out], monkeypatch, capsys)
    assert code == 0 and re.search(r"differ from the run's by [45]\.\de-05 at most", stdout)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    onnx.checker.check_model(str(out))


def disk_full(path: Path, *_: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def killed(path: Path, *args: Any) -> None:
    export_onnx_write(path, *args)
    os.kill(os.getpid(), signal.SIGTERM)


export_onnx_write = export_onnx.write
WRITERS: dict[str, tuple[Callable[..., None], int, str]] = {
    "disk full": (disk_full, 1, r"error: \[Errno 28\] No space left on device\n"),
    "killed": (killed, 143, r"stopped by SIGTERM: .*tiny\.onnx was not written\n"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_half_written_is_removed(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write, want, message = WRITERS[name]
    monkeypatch.setattr(export_onnx, "write", write)
    args = ["--workdir", finished, "--format", "onnx", "--out", tmp_path / "tiny.onnx"]
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (want, "") and re.fullmatch(message, stderr), stderr
    assert not list(tmp_path.iterdir())


BAD_ARGUMENTS = {
    "--format onnx --out NEW.onnx": "workdir",
    "--workdir RUN --out NEW.onnx": "format",
    "--workdir RUN --format onnx": "out",
    "--workdir RUN --format tflite --out NEW.tflite": "format|tflite",
    "--workdir NO --format onnx --out NEW.onnx": "is not a run",
    "--workdir RUN --format onnx --out NEW.keras": r"out='.*NEW.keras' is not a name for format=onnx; give .*\.onnx",
    "--workdir RUN --format keras --out NEW": r"ending in \.keras or \.h5",
    "--workdir RUN --format keras --out NO/NEW.h5": r"cannot be written: .*NO is not a directory; create it",
    "--workdir RUN --format html --out FILE/NEW.html": r"cannot be written: .*FILE is not a directory",
    "--workdir RUN --format onnx --out DIR.onnx": "is a directory; give the name of a file",
    "--workdir RUN --format onnx --out NEW.onnx --step last": "step='last' is not a checkpoint",
    "--workdir RUN --format onnx --out NEW.onnx --step 27": "step=27 has no checkpoint .* one of: 13, 26",
    "--workdir RUN --format onnx --out NEW.onnx --data-dir FILE/data": "data_dir=.* cannot be used",
    "--workdir RUN --ensemble 3 --format onnx --out NEW.onnx": "is not a sweep",
    "--workdir RUN --ensemble 3 --format keras --out NEW.keras": "format='keras' is for one network.*; give onnx",
    "--workdir RUN --ensemble 3 --format stablehlo --out NEW.stablehlo": "format='stablehlo' is for one network",
    "--workdir RUN --ensemble 3 --format html --out NEW.html": "format='html' is for one network",
    "--workdir RUN --ensemble 3 --format onnx --out NEW.keras": "is not a name for format=onnx",
    "--workdir RUN --ensemble 3 --format onnx --out NEW.onnx --step 13": "step='13' is for one run",
    "--workdir RUN --stage selection --format onnx --out NEW.onnx": "stage='selection' is for an ensemble",
    "--workdir COLOUR --format html --out NEW.html": r"images of \[28, 28, 1\] .*\[5, 4, 3\] and 10;",
    "--workdir TURNED --format html --out NEW.html": r"the images of emnist/digits have rows for columns; give keras,",
    "--workdir MANY --format html --out NEW.html": r"at most 10 classes, and this run's are \[28, 28, 1\] and 11;",
}


@pytest.fixture(scope="module")
def places(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    (root / "RUN").symlink_to(finished)
    (root / "FILE").write_text("precious")
    (root / "DIR.onnx").mkdir()
    tree = json.loads((finished / "config.json").read_text())
    for name, changes in {"COLOUR": {"image_shape": [5, 4, 3]}, "MANY": {"class_names": list("0123456789A")}}.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(tree | {"data": tree["data"] | changes}))
    (root / "TURNED").mkdir()
    turned = tree | {"config": tree["config"] | {"dataset": "emnist/digits"}}
    (root / "TURNED" / "config.json").write_text(json.dumps(turned))
    return root


def snapshot(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.mark.parametrize("line", BAD_ARGUMENTS)
def test_bad_arguments(line: str, places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    args = [places / word if re.match("[A-Z]{2}", word) else word for word in line.split()]
    before = snapshot(places)
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (2, ""), stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert re.search(BAD_ARGUMENTS[line], stderr), stderr
    assert snapshot(places) == before


@pytest.mark.parametrize(
    ("suffix", "package"), [(".h5", "keras"), (".onnx", "onnxruntime"), (".onnx", "onnx"), (".html", "py_mini_racer")]
)
def test_a_missing_extra_is_named(
    suffix: str,
    package: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    module = MODULES[KINDS[suffix]].__name__
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(mnist_flax.export, module.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, package, None)
    args = ["--workdir", finished, "--format", KINDS[suffix], "--out", tmp_path / f"tiny{suffix}"]
    code, stdout, stderr = run_here(args, monkeypatch, capsys)
    assert (code, stdout) == (2, "") and stderr.count("\n") == 1
    assert package in stderr and stderr.endswith("; pip install 'mnist_flax[export]'\n")
    assert not list(tmp_path.iterdir())
