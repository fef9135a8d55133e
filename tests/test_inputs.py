"""Whatever a user can do wrong: one line that names it, the exit code, and a disk left as it was."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest
from conftest import TINY_FLAGS, alarm

from mnist_flax.errors import InputError
from mnist_flax.evaluate import __main__ as evaluate
from mnist_flax.process import cli
from mnist_flax.sweep import __main__ as sweep
from mnist_flax.train import __main__ as train
from mnist_flax.workdir import run_info

COMMANDS = {"train": train, "evaluate": evaluate, "sweep": sweep}

# The command line (RUN is a finished run, NEW does not exist yet) and what the message must say.
BAD_ARGUMENTS = {
    "train": "required.*--workdir|--workdir.*required|workdir",
    "train --workdir": "Missing value for argument '--workdir'",
    "train --workdir NEW --learing-rate 3": "--learing-rate.*did you mean --learning-rate",
    "train --workdir NEW --epoch 3": "--epoch.*did you mean --epochs",
    "train --workdir NEW --batchsize 3": "--batchsize.*did you mean --batch-size",
    "train --workdir NEW --colour red": "Unrecognized options: --colour",
    "train --workdir NEW extra": "Unrecognized options: extra",
    "train --workdir NEW --epochs four": "--epochs.*'four'",
    "train --workdir NEW --epochs 2.5": "--epochs.*'2.5'",
    "train --workdir NEW --epochs": "--epochs",
    "train --workdir NEW --schedule step": "'step'.*constant",
    "train --workdir NEW --widths a b": "--widths.*'a'",
    "train --workdir NEW --epochs 0": "epochs=0 is out of range",
    "train --workdir NEW --epochs -1": "epochs=-1 is out of range",
    "train --workdir NEW --learning-rate 0": "learning_rate=0.0 is out of range",
    "train --workdir NEW --learning-rate -0.1": "learning_rate=-0.1 is out of range",
    "train --workdir NEW --learning-rate nan": "learning_rate=nan is out of range",
    "train --workdir NEW --learning-rate inf": "learning_rate=inf is out of range",
    "train --workdir NEW --l2 -1": "l2=-1.0 is out of range",
    "train --workdir NEW --l2 nan": "l2=nan is out of range",
    "train --workdir NEW --dropout-rate 1": "dropout_rate=1.0 is out of range",
    "train --workdir NEW --dropout-rate -0.1": "dropout_rate=-0.1 is out of range",
    "train --workdir NEW --label-smoothing 1": "label_smoothing=1.0 is out of range",
    "train --workdir NEW --b1 1": "b1=1.0 is out of range",
    "train --workdir NEW --b2 0": "b2=0.0 is out of range",
    "train --workdir NEW --b2 1": "b2=1.0 is out of range",
    "train --workdir NEW --seed -1": "seed=-1 is out of range",
    "train --workdir NEW --seed 4294967296": "seed=4294967296 is out of range",
    "train --workdir NEW --adam-epsilon 0": "adam_epsilon=0.0 is out of range",
    "train --workdir NEW --adam-epsilon inf": "adam_epsilon=inf is out of range",
    "train --workdir NEW --widths 0": r"widths=\(0,\) is out of range",
    "train --workdir NEW --widths 512 -512": "widths=.*-512.* is out of range",
    "train --workdir NEW --widths 99999": r"widths=\(99999,\) is out of range",
    "train --workdir NEW --batch-norm-layers 3": r"batch_norm_layers=\(3,\) is out of range.*from 1 to 2",
    "train --workdir NEW --batch-norm-layers 0": r"batch_norm_layers=\(0,\) is out of range",
    "train --workdir NEW --batch-norm-layers 1 1": r"batch_norm_layers=\(1, 1\) is out of range",
    "train --workdir NEW --l2-layers 4": r"l2_layers=\(4,\) is out of range.*from 1 to 3",
    "train --workdir NEW --widths 8": r"batch_norm_layers=\(2,\) is out of range.*from 1 to 1",
    "train --workdir NEW --warmup-epochs -1": "warmup_epochs=-1.0 is out of range",
    "train --workdir NEW --warmup-epochs 5": "warmup_epochs=5.0 is out of range.*epochs=4",
    "train --workdir NEW --batch-size 0": "batch_size=0 is out of range",
    "train --workdir NEW --batch-size 2000000": "batch_size=2000000 is out of range",
    "train --workdir NEW --batch-size 100": "batch_size=100 must be a multiple of the 8 devices; try 96 or 104",
    "train --workdir NEW --batch-size 4": "batch_size=4 must be a multiple of the 8 devices; try 8",
    "train --workdir NEW --eval-batch-size 0": "eval_batch_size=0 is out of range",
    "train --workdir NEW --steps-per-call 0": "steps_per_call=0 is out of range",
    "train --workdir NEW --checkpoint-every -5": "checkpoint_every=-5 is out of range",
    "train --workdir NEW --keep 0": "keep=0 is out of range",
    "train --workdir NEW --dataset ../mnist": "dataset='../mnist' is out of range",
    "train --workdir NEW --dataset MNIST": "dataset='MNIST' is out of range",
    "train --workdir NEW --dataset mnsit": "dataset='mnsit' is not prepared in",
    "train --workdir NEW --dataset cifar10": "dataset='cifar10' is not prepared in",
    "train --workdir NEW --dataset kmnist --manual-dir MANUAL --data-dir NEW": "lacks t10k-images-idx3-ubyte.gz",
    "train --workdir NEW --manual-dir MANUAL --data-dir NEW": "lacks t10k-images-idx3-ubyte.gz",
    "train --workdir NEW --train-split dev": "split='dev' is not a split",
    "train --workdir NEW --train-split train[": r"split='train\[' is not a split",
    "train --workdir NEW --train-split train[7:7]": r"split='train\[7:7\]' holds no example",
    "train --workdir NEW --eval-split test[10001:]": r"split='test\[10001:\]' is not a split",
    "train --workdir NEW --eval-split ;": "eval_split=';' is out of range",
    "train --workdir FOREIGN": "FOREIGN' exists and is not a run",
    "train --workdir FILE": "FILE' cannot be used \\(Not a directory\\)",
    "train --workdir NEW --learning-rate 1e39": "learning_rate=1e\\+39 is out of range",
    "train --workdir NEW --learning-rate 1e-60": "learning_rate=1e-60 is out of range",
    "train --workdir NEW --dropout-rate 0.99999999999": "dropout_rate=0.99999999999 is out of range",
    "train --workdir NEW --b1 0.99999999999": "b1=0.99999999999 is out of range",
    "train --workdir NEW --adam-epsilon 1e-60": "adam_epsilon=1e-60 is out of range",
    "train --workdir NEW --train-split train[:1shard]": "is not a split",
    "train --workdir FILE/exp": "cannot be written",
    "train --workdir /proc/exp": "cannot be written",
    "train --workdir NEW --data-dir FILE/data": "data_dir=.* cannot be used",
    "train --workdir RUN": r"other settings: .*widths=\(512, 512\) \(there \(16, 16\)\)",
    "train --workdir RUN TINY --seed 3 --l2 0": r"other settings: l2=0.0 \(there 0.001\), seed=3 \(there 0\);",
    "evaluate": "workdir",
    "evaluate --workdir NEW": "is not a run",
    "evaluate --workdir FOREIGN": "is not a run",
    "evaluate --workdir FILE": "is not a run",
    "evaluate --workdir RUN --step last": "step='last' is not a checkpoint; give latest, best or a number",
    "evaluate --workdir RUN --step -1": "step='-1' is not a checkpoint",
    "evaluate --workdir RUN --step 27": "step=27 has no checkpoint .* one of: 13, 26",
    "evaluate --workdir RUN --split dev": "split='dev' is not a split",
    "evaluate --workdir RUN --data-dir FILE/data": "data_dir=.* cannot be used",
    "evaluate --workdir RUN --ensemble 3": r"is not a sweep \(it has no sweep.json\); give the --workdir of",
    "evaluate --workdir NEW --ensemble 3": "is not a sweep",
    "evaluate --workdir FILE --ensemble 3": "is not a sweep",
    "evaluate --workdir SWEEP --ensemble 3": "is not a sweep that is known to be finished; run the sweep's",
    "evaluate --workdir SWEEP --ensemble 1": "ensemble=1 is out of range; give a whole number from 2",
    "evaluate --workdir SWEEP --ensemble ten": "--ensemble.*'ten'",
    "evaluate --workdir SWEEP --ensemble 3 --stage last": "'last'.*--stage",
    "evaluate --workdir SWEEP --ensemble 3 --step best": "step='best' is for one run.*; leave it out",
    "evaluate --workdir RUN --stage final": "stage='final' is for an ensemble; give --ensemble too",
    "sweep --workdir NEW": "required.*EXPERIMENT|experiment",
    "sweep STUDY.py": "required.*--workdir|--workdir.*required|workdir",
    "sweep NEW.py --workdir NEW": r"experiment='.*' cannot be read \(No such file",
    "sweep STUDY.py --workdir NEW --trials 3": r"trials=3 is for a search; .* lists its 2 members in sweep\(\)",
    "sweep STUDY.py --workdir NEW --trials 0": "trials=0 is out of range",
    "sweep STUDY.py --workdir NEW --workers 0": "workers=0 is out of range",
    "sweep STUDY.py --workdir NEW --population 0": "population=0 is out of range",
    "sweep STUDY.py --workdir NEW --storage nonsuch://x": "storage='nonsuch://x' cannot be used",
    "sweep STUDY.py --workdir NEW --data-dir FILE/data": "data_dir=.* cannot be used",
    "sweep STUDY.py --workdir FOREIGN": "is not a sweep",
    "sweep STUDY.py --workdir RUN": "is not a sweep",
    "sweep STUDY.py --workdir FILE": "is not a directory",
    "sweep STUDY.py --workdir FILE/x": "cannot be written",
    "sweep STUDY.py --workdir SWEEP": r"other settings: experiment='STUDY.py' \(there None\), BASE",
    "sweep STUDY.py --workdir SWEEP --storage sqlite:///x.db": r"learning_rate=0.001 \(there unset\).* and 21 more;",
    "sweep WRONG.py --workdir NEW": r"WRONG.py:5: there is no field 'droput_rate'.*did you mean dropout_rate",
    "sweep PEEKS.py --workdir NEW": "PEEKS.py: split='test' of the selection shares examples with the test's, 'test'",
}


@pytest.fixture(scope="module")
def places(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    shutil.copytree(finished, root / "RUN")
    for name in ("FOREIGN", "MANUAL"):
        (root / name).mkdir()
        (root / name / "thesis.tex").write_text("precious")
    (root / "FILE").write_text("precious")
    head = "from mnist_flax import Config\nBASE = Config(train_split='train[:200]', eval_split='train[200:]')\n"
    grid = "def sweep():\n    yield {'seed': 1}\n    yield "
    (root / "STUDY.py").write_text(head + grid + "{'seed': 2}\n")
    (root / "WRONG.py").write_text(head + grid + "{'droput_rate': 2}\n")
    (root / "PEEKS.py").write_text(head.replace("train[200:]", "test") + grid + "{'seed': 2}\n")
    (root / "SWEEP").mkdir()
    (root / "SWEEP" / "sweep.json").write_text('{"base": {}, "kind": "sweep", "storage": "journal"}')
    return root


def snapshot(root: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() and p.name != ".lock" else None for p in root.rglob("*")}


def run(name: str, args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """The exit code and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", [f"mnist_flax.{name}", *args])
    with pytest.raises(SystemExit) as exit_:
        cli.main(COMMANDS[name].Args, COMMANDS[name].run)
    return int(exit_.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("line", BAD_ARGUMENTS)
def test_bad_arguments(line: str, places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    name, *words = line.split()
    args = []
    for word in words:
        is_place = re.match("(NEW|RUN|FOREIGN|FILE|MANUAL|SWEEP|[A-Z]+[.]py)(/|$)", word)
        args += TINY_FLAGS if word == "TINY" else [str(places / word) if is_place else word]
    before = snapshot(places)
    code, stderr = run(name, args, monkeypatch, capsys)
    assert code == 2, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert re.search(BAD_ARGUMENTS[line], stderr), stderr
    assert snapshot(places) == before


def changed(**changes: object) -> dict:
    """How to edit the parsed `config.json`: a dotted path to a new value, or None to delete it."""
    return changes


BAD_CONFIGS = {
    "not JSON": ("{half", "is damaged"),
    "binary": ("\x80\x04\x95", "is damaged"),
    "a list": ("[]", "must hold config, data, versions"),
    "empty": ("", "is damaged"),
    "no config": (changed(config=None), "must hold config, data, versions"),
    "another part": (changed(extra=1), "must hold config, data, versions"),
    "field missing": (changed(config__epochs=None), "lacks field epochs"),
    "field unknown": (changed(config__colour="red"), "unknown field colour"),
    "hyperparameter missing": (changed(config__hparams__b1=None), "lacks field b1"),
    "hyperparameter unknown": (changed(config__hparams__momentum=0.9), "unknown field momentum"),
    "wrong type": (changed(config__epochs="4"), "epochs='4' has the wrong type"),
    "out of range": (changed(config__hparams__dropout_rate=1.5), "dropout_rate=1.5 is out of range"),
    "too large for a float": (changed(config__hparams__l2=10**400), "l2 is out of range"),
    "deep": ("[" * 100_000, "is damaged"),
    "two lines": (changed(versions={"jax": "1\nerror: forged"}), "versions is missing, unknown or wrong"),
    "two lines in a name": (
        changed(**{"a\nerror: forged\x1b[2J": 1}),
        r"not a\\nerror: forged\\x1b\[2J, commit, config",
    ),
    "other data": (changed(data__train_examples=7), "other data|train_examples differs"),
    "other layers": (changed(config__batch_norm_layers=[]), "other settings|batch_norm_layers differs"),
    "not a number": (changed(config__hparams__l2=float("nan")), "l2=nan is out of range"),
    "climbing dataset": (changed(config__dataset="mnist/../../etc"), "dataset=.* is out of range"),
    "absolute dataset": (changed(config__dataset="/etc"), "dataset=.* is out of range"),
    "climbing data_dir": (changed(data__data_dir="/tmp/../etc"), "data_dir is missing, unknown or wrong"),
    "relative data_dir": (changed(data__data_dir="data"), "data_dir is missing, unknown or wrong"),
    "zero byte in data_dir": (changed(data__data_dir="/tmp/\0"), "data_dir is missing, unknown or wrong"),
    "half a character in data_dir": (changed(data__data_dir="/tmp/\ud800"), "data_dir is missing, unknown or wrong"),
    "data missing": (changed(data__class_names=None), "data is missing, unknown or wrong"),
    "huge shape": (changed(data__image_shape=[2**40, 1, 1]), "image_shape is missing, unknown or wrong"),
    "no classes": (changed(data__class_names=[]), "class_names is missing, unknown or wrong"),
    "versions of another kind": (changed(versions=[1]), "versions is missing, unknown or wrong"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_bad_config_json(
    program: str,
    name: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    change, message = BAD_CONFIGS[name]
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    if isinstance(change, str):
        (path / "config.json").write_bytes(change.encode("latin1"))
    else:
        tree = json.loads((path / "config.json").read_text())
        for dotted, value in change.items():
            *parents, leaf = dotted.split("__")
            inner = tree
            for parent in parents:
                inner = inner[parent]
            if value is None:
                del inner[leaf]
            else:
                inner[leaf] = value
        (path / "config.json").write_text(json.dumps(tree))
    before = snapshot(path)
    flags = TINY_FLAGS if program == "train" else []
    code, stderr = run(program, ["--workdir", str(path), *flags], monkeypatch, capsys)
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert re.search(message, stderr), stderr
    assert snapshot(path) == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", ".lock"])
@pytest.mark.parametrize("what", ["pipe", "device"])
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_what_never_ends_is_not_read(
    program: str, what: str, name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "exp"
    shutil.copytree(finished, path)
    (path / name).unlink()
    if what == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to("/dev/tty" if name == "config.json" else "/dev/zero")
    before = snapshot(path)
    with alarm(30):
        code, stderr = run(program, ["--workdir", str(path), *TINY_FLAGS * (program == "train")], monkeypatch, capsys)
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert name in stderr and re.search("pipe or a device|symbolic link", stderr), stderr
    assert snapshot(path) == before


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 2**34)  # takes no space
    with pytest.raises(InputError, match="config.json cannot be read .File too large"):
        run_info.read(tmp_path)


def test_traceback_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    code, stderr = run("evaluate", ["--workdir", str(tmp_path / "no"), "--traceback"], monkeypatch, capsys)
    assert code == 2 and "Traceback" in stderr and "InputError" in stderr


@pytest.mark.parametrize("line", ["train --workdir NEW", "sweep GOOD.py --workdir NEW"])
@pytest.mark.parametrize("imported", [False, True])
def test_float64_is_refused(
    line: str, imported: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if not imported:
        monkeypatch.delitem(sys.modules, "jax")
        monkeypatch.setenv("JAX_ENABLE_X64", "1")
    with jax.enable_x64(imported):
        name, *words = line.split()
        code, stderr = run(name, words, monkeypatch, capsys)
    assert code == 2 and not list(tmp_path.iterdir())
    assert stderr == ("error: jax_enable_x64=True asks for float64, and runs are float32; unset JAX_ENABLE_X64\n")


def test_at_least_sixty() -> None:
    assert len(BAD_ARGUMENTS) + 2 * len(BAD_CONFIGS) >= 60
