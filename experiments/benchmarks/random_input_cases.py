"""What `random_input` tries: for each kind of input a function that damages it in a directory and names the command.

A case is a command (bytes are for the pipe of `writer_process`), its arguments, and a pattern of the paths below the
directory that the command may write.
"""

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import random_input_parts as parts
from random_input_originals import DATA, GRID, SEARCH, SWEEP, TINY, example, write_records

from mnist_flax import predict
from mnist_flax.config import Config, Hyperparams
from mnist_flax.data import datasets
from mnist_flax.evaluate import __main__ as evaluate
from mnist_flax.export import __main__ as export
from mnist_flax.monitor import async_writer
from mnist_flax.settings import settings_of
from mnist_flax.sweep import __main__ as sweep
from mnist_flax.train import __main__ as train
from mnist_flax.workdir import checksums

Case = tuple[Any, list[Any], str]


def config(rng: random.Random, root: Path) -> Case:
    """Damage `config.json`, for any command on a run."""
    path = root / "run" / "config.json"
    if rng.random() < 0.1:
        parts.other_than_a_file(rng, path)
    else:
        path.write_bytes(parts.damage_json(rng, path.read_text()))
    return rng.choice(_on_a_run(root))


def sums(rng: random.Random, root: Path) -> Case:
    """Damage `SHA256SUMS` or what is beside it, or rename the checkpoint."""
    path = root / "run" / "checkpoints" / "8" / "SHA256SUMS"
    if (way := rng.random()) < 0.2:
        parts.other_than_a_file(rng, rng.choice([path, *(file for file in path.parent.rglob("*") if file.is_file())]))
    elif way < 0.4:
        put = rng.choice([shutil.move, shutil.copytree])
        put(path.parent, path.parent.with_name(rng.choice(["08", "٨", "²", "99", "8" * 200, "-8", "8\n", "0"])))
    else:
        path.write_bytes(parts.damage_bytes(rng, path.read_bytes()))
    return rng.choice(_on_a_run(root))


def metadata(rng: random.Random, root: Path) -> Case:
    """Damage a checkpoint's own descriptions, and make the sums again, so that they fit."""
    path = root / "run" / "checkpoints" / "8"
    file = path / rng.choice(["_CHECKPOINT_METADATA", "state/_METADATA"])
    file.write_bytes(parts.damage_json(rng, file.read_text()))
    (path / "SHA256SUMS").write_text(checksums.of(path))
    return rng.choice(_on_a_run(root))


def metrics(rng: random.Random, root: Path) -> Case:
    """Damage a file that a training writes."""
    path = root / "run" / rng.choice(["metrics.jsonl", "metrics.jsonl", ".lock", ".saved"])
    if rng.random() < 0.5:
        parts.other_than_a_file(rng, path)
    else:
        path.write_bytes(parts.damage_bytes(rng, path.read_bytes()))
    return _on_a_run(root)[-1]


def _on_a_run(root: Path) -> list[Case]:
    """Every command that reads a run's directory."""
    run = ["--workdir", root / "run"]
    page = [*run, "--format", "html", "--out", root / "page.html"]
    written = r"run/(\.lock|\.saved|metrics\.jsonl|checkpoints/.*)"
    return [
        (evaluate, run, ""),
        (predict, [*run, root / "a.png"], ""),
        (export, page, ""),
        (train, [*run, *TINY], written),
    ]


def pictures(rng: random.Random, root: Path) -> Case:
    """A picture of a digit, or not."""
    path = root / rng.choice(["a.png", "b\n.jpg", "\x1b[31m.png", "[red].png", "x\udcff.png"])
    path.write_bytes(parts.picture(rng))
    return predict, ["--workdir", root / "run", *["--json"] * rng.randrange(2), path], ""


def experiments(rng: random.Random, root: Path) -> Case:
    """An experiment file."""
    (root / "study.py").write_bytes(parts.damage_python(rng, rng.choice([GRID, SEARCH])))
    return sweep, [root / "study.py", "--workdir", root / "new"], ""


def journal(rng: random.Random, root: Path) -> Case:
    """A line of a finished sweep's journal, or its `sweep.json`."""
    path = root / "sweep" / rng.choice(["optuna.journal"] * 4 + ["sweep.json"])
    if rng.random() < 0.1:
        parts.other_than_a_file(rng, path)
    elif path.suffix == ".json" or rng.random() < 0.2:
        path.write_bytes(parts.damage_bytes(rng, path.read_bytes()))
    else:
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = parts.damage_json(rng, lines[at].decode())
        path.write_bytes(b"\n".join([*lines, b""]))
    written = r"sweep/(\.sweep\.lock|sweep\.json|optuna\.journal|results\.jsonl|summary\..*|\.saving-.*)"
    return sweep, [root / "study.py", *SWEEP], written


def data(rng: random.Random, root: Path) -> Case:
    """A dataset that TFDS has prepared as TFRecord, or its decoded copy."""
    directory = root / "data" / DATA
    file = rng.choice([file for file in directory.rglob("*") if file.is_file()])
    if file.parent == directory:
        shutil.rmtree(directory / "decoded")  # which would be used instead
    if "tfrecord" in file.name and rng.random() < 0.7:
        records = [*map(example, range(40))]
        odd = example(3, parts.picture(rng), rng.choice([0, -1, 2, 2**40]))
        records[rng.randrange(40)] = rng.choice([odd, parts.damage_bytes(rng, records[3])])
        write_records(file, records, rng.choice([None, None, None, 0, 2**30, 2**40, 2**64 - 1]))
    elif rng.random() < 0.1:
        parts.other_than_a_file(rng, file)
    elif file.suffix == ".json":
        file.write_bytes(parts.damage_json(rng, file.read_text()))
    else:
        file.write_bytes(parts.damage_bytes(rng, file.read_bytes()))
    flags = ["--workdir", root / "new", *TINY, "--dataset", "shapes", "--data-dir", root / "data"]
    return train, [*flags, "--train-split", "train[:30]", "--eval-split", "test[:30]"], r"data/.*|new(/.*)?"


def idx(rng: random.Random, root: Path) -> Case:
    """The canonical files of MNIST, one of them damaged."""
    for file in (Path(datasets.__file__).parent / "mnist").glob("*.gz"):
        (root / file.name).symlink_to(file)
    file = root / f"{rng.choice(['train', 't10k'])}-labels-idx1-ubyte.gz"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(parts.damage_bytes(rng, content))
    return train, ["--workdir", root / "new", *TINY, "--manual-dir", root, "--data-dir", root / "made"], "new.*"


def flags(rng: random.Random, root: Path) -> Case:
    """A command line."""
    names = [*settings_of(Hyperparams), *settings_of(Config), "workdir", "step", "split", "format", "out", "trials",
             "workers", "population", "storage", "data_dir", "manual_dir", "coordinator", "num_processes", "process_id",
             "figures", "no_figures", "json", "help", "distributed"]  # fmt: skip
    words = [str(word) for word in parts.ODD if "\0" not in str(word) and "\ud800" not in str(word)]
    words += [
        *parts.WORDS[:-9],
        "\udcff",
        "run",
        "study.py",
        "sweep",
        "best",
        "sqlite:///x.db",
        "train[:9]",
        "8 8",
        "--",
        "-",
    ]
    line = []
    for _ in range(rng.choice([1, 2, 3, 6])):
        name = rng.choice(names)
        line += [f"--{name.replace('_', rng.choice('-_'))}", *rng.choices(words, k=rng.choice([0, 1, 1, 1, 2]))]
    command = rng.choice([train, train, evaluate, predict, export, sweep])
    given = {sweep: ["study.py"], predict: ["a.png"], export: ["--format", "html", "--out", "a.html"]}.get(command, [])
    return command, [*["--workdir", "new"] * (rng.random() < 0.8), *given, *line], ""


def pipe(rng: random.Random, root: Path) -> Case:
    """The bytes that arrive at the process that writes figures and TensorBoard files; their first part says where."""
    spec = json.loads((root / "data" / DATA / "decoded" / "spec.json").read_text())
    dataset = datasets.Dataset(
        str(root / "data" / DATA / "decoded"), (8, 8, 1), ("a", "b"), spec["examples"], spec["sha256"]
    )
    line = {"step": 4, "epoch": 1, "split": "eval"}
    line |= dict.fromkeys(("loss", "cross_entropy", "l2_penalty", "accuracy"), 0.5)
    weights = np.ones((4, 8, 8, 1), np.float32)
    epoch = async_writer.EpochDone([line, line], {"kernel": weights}, weights, np.ones((40, 2), np.float32))
    scalars = async_writer.StepScalars(4, {"loss": np.ones(4, np.float32)})
    first = pickle.dumps(async_writer.RunStarted(root / "run", Config(), dataset, [("a", "Dense", [])], 0, []))
    rest = b"".join(map(pickle.dumps, (scalars, epoch, async_writer.RunFinished())))
    content = first + parts.damage_bytes(rng, rest) if rng.random() < 0.8 else first[: rng.randrange(len(first))]
    return content, ["--tensorboard"], "run/(tensorboard|figures).*"
