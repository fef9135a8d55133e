"""The card of a finished run: `README.md` in its directory, for people, with a head that model hubs read.

write(path, run_info, history, labels, logits)
"""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from mnist_flax.config import Config, flatten
from mnist_flax.data.datasets import default_data_dir
from mnist_flax.metrics import evaluation_report, wilson_interval
from mnist_flax.process.files import write_text
from mnist_flax.workdir.run_info import RunInfo

NAME = "README.md"
_TEXT = """---
library_name: flax
pipeline_tag: image-classification
tags: [image-classification, mnist_flax]
datasets: [{dataset_json}]
model-index:
- name: {name_json}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {dataset_json}, type: {dataset_json}, split: {split_json}}}
    metrics: [{{type: accuracy, value: {accuracy}}}]
---

# {name}

A multi-layer perceptron, {layers}, trained on {dataset} with mnist_flax for {epochs}.

## Result

On the {examples:,} examples of {split}, after the last epoch:

- accuracy {accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})
- cross-entropy {cross_entropy:.4f} nats
{by_class}
## Use

```python
import mnist_flax

model, variables = mnist_flax.load({name_json})
logits = model.apply(variables, images)  # images [N, {axes}], uint8 or float in 0..1
```

## Data

{dataset}: {train_examples:,} images of {train_split}; uint8, {shape}, {classes} classes.

{sums}

## How it was made

```bash
{command}
```

{settings}

It took {seconds:,.0f} s of training and evaluation, with {versions}{commit}.{initial}
"""


def write(
    path: Path, run: RunInfo, history: list[dict[str, Any]], labels: np.ndarray, logits: np.ndarray | None
) -> None:
    """Write the card of a run, from the lines of its `metrics.jsonl` and its logits [N, C] on the evaluation split.

    Without logits, which no process may have all of, it lacks the accuracy of each class and the calibration.
    """
    config, data, last = run.config, run.data, history[-1]
    report = None if logits is None else evaluation_report(logits, labels)
    low, high = wilson_interval(round(last["accuracy"] * last["examples"]), last["examples"])
    sizes = [data["image_shape"][0] * data["image_shape"][1] * data["image_shape"][2], *config.widths]
    differing = _differing(config)
    text = _TEXT.format(
        name=path.name, name_json=json.dumps(path.name),
        dataset=config.dataset, dataset_json=json.dumps(config.dataset), split_json=json.dumps(config.eval_split),
        layers="-".join(map(str, [*sizes, len(data["class_names"])])),
        epochs=f"{config.epochs} epoch{'s' * (config.epochs > 1)}", split=config.eval_split,
        train_split=config.train_split, train_examples=data["train_examples"], examples=last["examples"],
        accuracy=last["accuracy"], low=low, high=high, cross_entropy=last["cross_entropy"],
        by_class=_by_class(report, data["class_names"]) if report else "",
        shape=" x ".join(map(str, data["image_shape"])), axes=", ".join(map(str, data["image_shape"])),
        classes=len(data["class_names"]),
        sums="\n".join(f"- `{name}`: SHA-256 `{value}`" for name, value in sorted(data["sha256"].items())),
        command=_command(path, run, differing),
        settings=_settings(differing) if differing else "All settings are the defaults.",
        seconds=sum(line["seconds"] for line in history),
        versions=", ".join(f"{name} {version}" for name, version in run.versions.items()),
        commit=f", commit {run.commit}" if run.commit else "",
        initial=f" It began with the weights of {run.initial['workdir']}." if run.initial else "",
    )  # fmt: skip
    write_text(path / NAME, text)


def _differing(config: Config) -> dict[str, Any]:
    """The settings that are not the defaults."""
    defaults = flatten(Config())
    return {name: value for name, value in flatten(config).items() if value != defaults[name]}


def _command(path: Path, run: RunInfo, differing: dict[str, Any]) -> str:
    """The command that makes this run again."""
    if run.hparams_by_step:
        steps = ", ".join(map(str, run.hparams_by_step))
        return f"# by no single command: its hyperparameters hold from steps {steps} on, see config.json"
    words = ["python", "-m", "mnist_flax.train", "--workdir", path.name]
    words += ["--init-from", run.initial["workdir"]] if run.initial else []
    if run.data["data_dir"] != str(default_data_dir()):
        words += ["--data-dir", run.data["data_dir"]]
    for name, value in differing.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _settings(differing: dict[str, Any]) -> str:
    values = {n: " ".join(map(str, v)) or "none" if isinstance(v, tuple) else v for n, v in differing.items()}
    return _table(["setting that is not the default", "value"], [[f"`{n}`", f"`{v}`"] for n, v in values.items()])


def _by_class(report: dict[str, Any], names: list[str]) -> str:
    shares = zip(names, report["per_class_accuracy"], strict=True)
    table = _table(["class", "accuracy"], [[_escaped(c), "-" if s is None else f"{s:.2%}"] for c, s in shares])
    return f"- expected calibration error {report['expected_calibration_error']:.4f}\n\n{table}\n"


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])


def _escaped(text: str) -> str:
    """Without what Markdown or HTML would read: a class may have any name."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!&~" else c for c in text)
