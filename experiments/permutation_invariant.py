"""How low can the test error of permutation-invariant MNIST be, with all labels and without distortions?

Question: the Ladder network's 0.57 % (Rasmus et al. 2015) and virtual adversarial training's 0.64 % (Miyato et al.
2018) are the best that we found. Which radius, noise and width does virtual adversarial training like, with an average
of the weights and measured BatchNorm statistics? Three seeds for each recipe, of which the worse stop after 12 epochs;
the best on validation is trained on all of train with ten new seeds, and the test split is read then.

    python -m mnist_flax.sweep experiments/permutation_invariant.py --workdir sweeps/permutation_invariant  # 4 hours

Not finished.
"""

from collections.abc import Iterator

from mnist_flax import Config, Halving, Hyperparams

BASE = Config(
    widths=(1200, 600, 300, 150), batch_norm_layers=(1, 2, 3, 4), l2_layers=(), batch_size=100, steps_per_call=100,
    epochs=40, schedule="linear", virtual_adversarial=True, noise_at="hidden", average_weights=True,
    precise_batch_norm=True, train_split="train[:50000]", eval_split="train[50000:]",
    hparams=Hyperparams(learning_rate=2e-3, dropout_rate=0.0, adversarial_radius=1.2, noise=0.2),
)  # fmt: skip
ADAPT = Halving(rungs=(12,), keep=1 / 3, across="seed")
KEEP = 10
WIDE = {"widths": (2000, 1000, 500), "batch_norm_layers": (1, 2, 3)}
RECIPES = [  # the most promising first
    {"adversarial_radius": 1.2, "noise": 0.2},
    {"adversarial_radius": 1.6, "noise": 0.2},
    {"adversarial_radius": 1.2, "noise": 0.3},
    {**WIDE, "adversarial_radius": 1.2, "noise": 0.2},
    {"adversarial_radius": 0.8, "noise": 0.3},
    {"noise_at": "both", "adversarial_radius": 1.2, "noise": 0.2},
    {"adversarial_radius": 2.1, "noise": 0.2},
    {"noise_at": "none", "adversarial_radius": 1.6, "noise": 0.0},
    {"virtual_adversarial": False, "noise_at": "both", "noise": 0.3},
]


def sweep() -> Iterator[dict]:
    """Every recipe with three seeds."""
    for recipe in RECIPES:
        for seed in range(3):
            yield recipe | {"seed": seed}
