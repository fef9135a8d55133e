"""A static setting that is added in two places, config and model, takes effect everywhere: nothing else is wired."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

PACKAGE = Path(__file__).parents[1] / "mnist_flax"
EDITS = {
    "config.py": [
        (
            '    precision: Annotated[Literal["float32", "bfloat16"], LATER] = "float32"\n',
            '    logit_scale: Annotated[float, Between(0, 10, "1"), LATER] = 1.0\n    """Multiplies the logits."""\n'
            '    precision: Annotated[Literal["float32", "bfloat16"], LATER] = "float32"\n',
        )
    ],
    "model.py": [
        (
            "    batch_norm_layers: tuple[int, ...]\n",
            "    batch_norm_layers: tuple[int, ...]\n    logit_scale: float\n",
        ),
        ("return dense(self.num_classes", "return self.logit_scale * dense(self.num_classes"),
        ("static.batch_norm_layers, num_classes,", "static.batch_norm_layers, static.logit_scale, num_classes,"),
    ],
}
SCRIPT = """
import dataclasses, json, shutil
from pathlib import Path
import jax, numpy as np
import mnist_flax
from mnist_flax import Config
from mnist_flax.export import __main__ as export
from mnist_flax.process.cli import StopSignals
from mnist_flax.sweep import __main__ as sweep
from mnist_flax.train import __main__ as train

signals, quiet = StopSignals(), {"figures": False, "tensorboard": False}
config = Config(widths=(16, 16), batch_size=16, epochs=2, logit_scale=3.0,
                train_split="train[:200]", eval_split="train[200:400]")

def metrics(path):
    lines = map(json.loads, (Path(path) / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

# sweep, as base and as override; first, since it says how many devices JAX has
Path("study.py").write_text('''"A study."
from mnist_flax import Config
BASE = Config(widths=(16, 16), batch_size=16, epochs=2, logit_scale=3.0,
              train_split="train[:200]", eval_split="train[200:400]")
FINAL_SEEDS = 0
def sweep():
    yield {"seed": 0}
    yield {"seed": 0, "logit_scale": 1.0}
''')
sweep.run(sweep.Args(experiment=Path("study.py"), workdir=Path("sweep"), **quiet), signals)

# train: another result, and recorded
train.run(train.Args(Path("three"), config, **quiet), signals)
train.run(train.Args(Path("one"), dataclasses.replace(config, logit_scale=1.0), **quiet), signals)
assert metrics("three") != metrics("one")
assert json.loads(Path("three/config.json").read_text())["config"]["logit_scale"] == 3.0
assert "logit_scale" not in json.loads(Path("one/config.json").read_text())["config"]

# resume: from the first epoch's checkpoint, the same bits as straight
shutil.copytree("three", "resumed")
shutil.rmtree("resumed/checkpoints/26")
train.run(train.Args(Path("resumed"), config, **quiet), signals)
assert metrics("resumed") == metrics("three")

# load
model, variables = mnist_flax.load("three")
images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
logits = np.asarray(model.apply(variables, images))
np.testing.assert_allclose(logits, 3 * np.asarray(model.clone(logit_scale=1.0).apply(variables, images)), rtol=1e-5)

# export
export.run(export.Args(Path("three"), "stablehlo", Path("three.stablehlo")), signals)
file = jax.export.deserialize(bytearray(Path("three.stablehlo").read_bytes()))
np.testing.assert_allclose(file.call(images), logits, atol=1e-5)

# the sweep's members are those runs
for row in map(json.loads, Path("sweep/results.jsonl").read_text().splitlines()):
    lone = metrics("one" if "logit_scale" in row["overrides"] else "three")
    np.testing.assert_allclose([line["loss"] for line in row["history"]], [line["loss"] for line in lone], rtol=1e-2)
"""


@pytest.mark.usefixtures("dataset")  # prepared by then
def test_a_static_setting_takes_effect_everywhere(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "mnist_flax", ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in EDITS.items():
        text = (tmp_path / "mnist_flax" / name).read_text()
        for before, after in edits:
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        (tmp_path / "mnist_flax" / name).write_text(text)
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"JAX_NUMPY_RANK_PROMOTION": "allow"}
    line = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
