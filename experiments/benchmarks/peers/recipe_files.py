"""What the peers read of a recipe: the settings that they can follow, and the learning rate of each step."""

import json
import re
from pathlib import Path
from typing import Any


def settings(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's settings, with the number of training images as `train`, and its hyperparameters."""
    recipe = json.loads(Path(path).read_text())
    split = re.fullmatch(r"train(?:\[:(\d+)\])?", recipe["train_split"])
    assert split and recipe["schedule"] == "linear" and not recipe["l2_layers"] and not recipe["max_norm_layers"]
    known = {
        "hparams", "widths", "batch_norm_layers", "l2_layers", "max_norm_layers", "adam_epsilon", "schedule", "epochs",
        "warmup_epochs", "batch_size", "dataset", "train_split", "eval_split", "steps_per_call", "eval_batch_size",
        "checkpoint_every", "keep",
    }  # fmt: skip
    assert recipe.keys() <= known, recipe.keys() - known  # else the peer would train another network
    return recipe | {"train": int(split[1] or 60000)}, recipe["hparams"]


def learning_rates(recipe: dict[str, Any], hparams: dict[str, Any], examples: int) -> list[float]:
    """A linear warm-up from 1 / (its steps + 1), then a linear decay that reaches 0 after the last step."""
    steps = -(-examples // recipe["batch_size"])
    warmup, total = round(recipe["warmup_epochs"] * steps), recipe["epochs"] * steps
    decay = max(total - warmup, 1)
    rising = [(step + 1) / (warmup + 1) for step in range(warmup)]
    falling = [1 - done / decay for done in range(total - warmup)]
    return [hparams["learning_rate"] * factor for factor in [*rising, *falling]]
