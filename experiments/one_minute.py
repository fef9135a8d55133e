"""Which recipe for the tutorial's two layers reaches 99 % soonest?

Question: `time_to_accuracy.py` gets 98.67 % in three epochs. What do distortions, noise and adversarial training make
of that recipe in a few more? Two seeds each, so this ranks nothing; the soonest above 99 % on validation makes
`recipes/99.json`.

    python -m mnist_flax.sweep experiments/one_minute.py --workdir sweeps/one_minute  # 30 minutes

Not finished.
"""

from collections.abc import Iterator

from mnist_flax import Config, Hyperparams

BASE = Config(
    batch_norm_layers=(1, 2), l2_layers=(), schedule="linear", warmup_epochs=0.1,
    train_split="train[:50000]", eval_split="train[50000:]",
    hparams=Hyperparams(learning_rate=0.0062, b1=0.7005, b2=0.98, dropout_rate=0.005, label_smoothing=0.1094),
)  # fmt: skip
FINAL_SEEDS = 0
AFFINE = {"distort": "affine"}
RECIPES = {
    "plain": {},
    "affine": AFFINE,
    "affine, half as strong": {**AFFINE, "shift": 0.5, "rotation": 5.0, "scaling": 0.05, "shear": 0.05},
    "affine, noise": {**AFFINE, "noise_at": "hidden", "noise": 0.2},
    "noise": {"noise_at": "hidden", "noise": 0.3},
    "adversarial": {"virtual_adversarial": True, "adversarial_radius": 1.2, "label_smoothing": 0.0},
}


def sweep() -> Iterator[dict]:
    """Every recipe for 6 and for 10 epochs."""
    for recipe in RECIPES.values():
        for epochs in (6, 10):
            for seed in range(2):
                yield {"epochs": epochs, **recipe, "seed": seed}


def method(overrides: dict) -> str:
    """Its name, and for how long."""
    rest = {name: value for name, value in overrides.items() if name not in ("seed", "epochs")}
    return f"{next(name for name, recipe in RECIPES.items() if recipe == rest)}, {overrides['epochs']} epochs"
