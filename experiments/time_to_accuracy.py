"""How soon can the tutorial's network reach a mean of 98.0 % and of 98.5 % on test?

Question: the tutorial needs more than its 4 epochs for 98.0 %. What do BatchNorm on both layers, a short warm-up with
a linear decay, faster Adam moments, label smoothing and little dropout make of one, two and three epochs? For each
budget, 24 random recipes with two seeds; the best on validation is tested over ten fresh seeds.

    python -m mnist_flax.sweep experiments/time_to_accuracy.py --workdir sweeps/time_to_accuracy  # 11 minutes

Answer: one epoch reaches 98.18 %, two reach 98.52 % and three 98.67 %; the tutorial's four reach 97.68 %. All three
recipes have almost no dropout, label smoothing of 0.11, b1 of 0.7 and about five times the tutorial's step size.
"""

from collections.abc import Iterator

import numpy as np

from mnist_flax import Config

BASE = Config(train_split="train[:50000]", eval_split="train[50000:]")
RECIPE = {"batch_norm_layers": (1, 2), "l2_layers": (), "schedule": "linear", "warmup_epochs": 0.1}


def sweep() -> Iterator[dict]:
    """The tutorial, then random recipes; the same for each budget."""
    for seed in range(2):
        yield {"epochs": 4, "seed": seed}
    for epochs in (1, 2, 3):
        rng = np.random.default_rng(0)
        for _ in range(24):
            recipe = {
                "learning_rate": 10 ** rng.uniform(-2.7, -2.1),
                "b1": rng.uniform(0.7, 0.9),
                "b2": rng.uniform(0.92, 0.99),
                "dropout_rate": rng.uniform(0.0, 0.15),
                "label_smoothing": rng.uniform(0.0, 0.15),
            }
            for seed in range(2):
                yield {"epochs": epochs, **RECIPE, **{k: round(v, 4) for k, v in recipe.items()}, "seed": seed}


def method(overrides: dict) -> str:
    """Its budget."""
    epochs = overrides["epochs"]
    return "the tutorial, 4 epochs" if epochs == 4 else f"{epochs} epoch{'s' * (epochs > 1)}"
