"""The recipes that `train --config` takes, and what the peers make of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mnist_flax.optimizer import schedule_factor
from mnist_flax.workdir.run_info import read_settings

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RECIPES = sorted((EXPERIMENTS / "recipes").glob("*.json"))
sys.path.insert(0, str(EXPERIMENTS / "benchmarks" / "peers"))
import recipe_files  # noqa: E402


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_peers_follow_the_same_learning_rate(path: Path) -> None:
    config = read_settings(path)
    assert config.eval_split == "test"
    recipe, hparams = recipe_files.settings(str(path))
    steps = -(-recipe["train"] // config.batch_size)
    ours = config.hparams.learning_rate * schedule_factor(np.arange(config.epochs * steps), config.static(), steps)
    np.testing.assert_allclose(recipe_files.learning_rates(recipe, hparams, recipe["train"]), ours, atol=1e-8)
