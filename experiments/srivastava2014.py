"""Does the order of regularisers in Srivastava et al. 2014, Table 9, hold on this network?

Question: the paper compares L2, max-norm, dropout + L2 and dropout + max-norm on MNIST (1.62, 1.35, 1.25 and 1.05 %
test error, on a 784-1024-1024-2048-10 network). Here on 784-512-512-10 with Adam: the strength of each is chosen on
validation, then tested over ten fresh seeds.

    python -m mnist_flax.sweep experiments/srivastava2014.py --workdir sweeps/srivastava2014  # 45 minutes

Answer: too little of it to tell. Dropout 98.630 %, with L2 98.624 %, with max-norm 98.597 %; max-norm 98.565 %, no
regulariser 98.543 %, L2 98.507 %. The means stand in the paper's order but for the two with dropout. Of the 15
differences, paired by seed and corrected by Holm's method, three are distinguishable at 5 %: dropout with L2 is better
than L2 and than none, and dropout alone better than L2. With Adam, a decaying step size and 15 epochs there is little
left to regularise.
"""

from collections.abc import Iterator
from itertools import product

from mnist_flax import Config

BASE = Config(
    batch_norm_layers=(), l2_layers=(), schedule="linear", epochs=15, train_split="train[:50000]",
    eval_split="train[50000:]",
)  # fmt: skip
L2 = [{"l2_layers": (1, 2, 3), "l2": l2} for l2 in (1e-5, 3e-5, 1e-4, 3e-4)]
MAX_NORM = [{"max_norm_layers": (1, 2), "max_norm": limit} for limit in (1.0, 1.5, 2.0, 3.0)]


def sweep() -> Iterator[dict]:
    """Each strength with two seeds."""
    for dropout_rate, constraint, seed in product((0.0, 0.25, 0.5), [{}, *L2, *MAX_NORM], range(2)):
        yield {"dropout_rate": dropout_rate, **constraint, "seed": seed}


def method(overrides: dict) -> str:
    """What a configuration is called in the paper."""
    used = ["dropout"] * (overrides["dropout_rate"] > 0) + ["L2"] * ("l2" in overrides)
    return " + ".join(used + ["max-norm"] * ("max_norm" in overrides)) or "none"
