"""MNIST with JAX and Flax: train, evaluate and reload a small MLP, exactly.

    model, variables = mnist_flax.load("exp1")
    logits = model.apply(variables, images)  # uint8 or float [N, 28, 28, 1], [N, 28, 28] or [N, 784] -> float32 [N, 10]

Importing the package costs nothing: what needs JAX is imported when it is first asked for.
"""

import re
import sys
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"] and any(re.fullmatch(r"mnist_flax\.\w+", arg) for arg in sys.orig_argv):
    # One of the commands starts here, and a signal may come at any moment.
    from mnist_flax.process import signals, terminal

    terminal.open_closed_streams()  # before any file is opened
    signals.end_at_once()

if TYPE_CHECKING:
    from mnist_flax.config import Config as Config
    from mnist_flax.config import Hyperparams as Hyperparams
    from mnist_flax.inference import Run as Run
    from mnist_flax.inference import load as load
    from mnist_flax.sweep.adapt import Halving as Halving
    from mnist_flax.sweep.adapt import PopulationBased as PopulationBased
    from mnist_flax.train.fit import fit as fit

__all__ = ["Config", "Halving", "Hyperparams", "PopulationBased", "Run", "fit", "load"]  # noqa: F822
_MODULES = {"Config": "config", "Hyperparams": "config", "Run": "inference", "fit": "train.fit", "load": "inference"}
_MODULES |= {"Halving": "sweep.adapt", "PopulationBased": "sweep.adapt"}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("mnist_flax")
    if name not in _MODULES:
        raise AttributeError(f"module 'mnist_flax' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    from importlib import import_module

    return getattr(import_module(f"mnist_flax.{_MODULES[name]}"), name)
