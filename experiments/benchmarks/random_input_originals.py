"""Make the small originals that `random_input` damages: a run, a finished sweep, a dataset, experiment files."""

import importlib
import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.record_writer import masked_crc32c

from mnist_flax.data import datasets

TINY = ["--widths", "8", "--batch-norm-layers", "--l2-layers", "--train-split", "train[:500]", "--eval-split",
        "test[:100]", "--epochs", "2", "--steps-per-call", "4", "--no-figures", "--no-tensorboard",
        "--no-compilation-cache"]  # fmt: skip
SWEEP = ["--workdir", "sweep", "--no-figures", "--no-tensorboard", "--no-compilation-cache"]
DATA = "shapes/1.0.0"
HEAD = '''"""Which one?"""
from mnist_flax import Config, Hyperparams
BASE = Config(widths=(8,), batch_norm_layers=(), l2_layers=(), epochs=1, train_split="train[:500]",
              eval_split="train[500:600]", steps_per_call=4, hparams=Hyperparams(l2=0.5))
FINAL = {"train_split": "train[:600]", "eval_split": "test[:100]"}
FINAL_SEEDS = 1
'''
GRID = f"""{HEAD}
def method(overrides):
    return "l2" if overrides["l2"] else "none"
def sweep():
    for l2 in (0.0, 1e-3):
        yield {{"l2": l2, "seed": 3}}
"""
SEARCH = f"""{HEAD}
TRIALS = 3
def search(trial):
    return {{"l2": trial.suggest_float("l2", 1e-6, 1e-2, log=True), "seed": trial.suggest_int("seed", 0, 9)}}
"""


def make_originals(root: Path) -> None:
    """Train the run and the sweep by their commands, prepare and decode the dataset, and save a picture."""
    (root / "study.py").write_text(GRID)
    for line in (["train", "--workdir", "run", *TINY], ["sweep", "study.py", *SWEEP]):
        command = [sys.executable, "-m", f"mnist_flax.{line[0]}", *line[1:]]
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    prepare_dataset(root / "data" / DATA)
    datasets.open_dataset("shapes", root / "data")
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(root / "a.png")


def prepare_dataset(directory: Path) -> None:
    """Write a small dataset as TFDS would: its two descriptions, the names of its classes, and TFRecord files."""
    feature, shape = "tensorflow_datasets.core.features.", {"dimensions": ["8", "8", "1"]}
    image = {"image": {"dtype": "uint8", "shape": shape}, "pythonClassName": f"{feature}image_feature.Image"}
    label = {"classLabel": {"numClasses": "2"}, "pythonClassName": f"{feature}class_label_feature.ClassLabel"}
    features: dict[str, Any] = {"featuresDict": {"features": {"image": image, "label": label}}}
    features["pythonClassName"] = f"{feature}features_dict.FeaturesDict"
    template = {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "numBytes": "1000"}
    splits = [template | {"name": split, "shardLengths": ["40"]} for split in ("train", "test")]
    info = {"name": "shapes", "version": "1.0.0", "fileFormat": "tfrecord", "splits": splits}
    directory.mkdir(parents=True)
    (directory / "features.json").write_text(json.dumps(features))
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "label.labels.txt").write_text("square\nround\n")
    for split in ("train", "test"):
        write_records(directory / f"shapes-{split}.tfrecord-00000-of-00001", [*map(example, range(40))])


def example(index: int, image: bytes = b"", label: int | None = None) -> bytes:
    """A TFDS example: of a grey square, unless another image or label is given."""
    proto: Any = importlib.import_module("tensorflow_datasets.proto").tf_example_pb2
    file, record = io.BytesIO(), proto.Example()
    Image.fromarray(np.full((8, 8), index, np.uint8)).save(file, "PNG")
    record.features.feature["image"].bytes_list.value.append(image or file.getvalue())
    record.features.feature["label"].int64_list.value.append(index % 2 if label is None else label)
    return record.SerializeToString()


def write_records(path: Path, records: list[bytes], length: int | None = None) -> None:
    """A TFRecord file whose checksums are right; `length` is what the first record claims to have."""
    parts = []
    for index, record in enumerate(records):
        header = struct.pack("<Q", length if length is not None and not index else len(record))
        parts += [header, struct.pack("<I", masked_crc32c(header)), record, struct.pack("<I", masked_crc32c(record))]
    path.write_bytes(b"".join(parts))
