"""Evaluate a network, or an ensemble, on every example of a split: the command `python -m mnist_flax.evaluate`."""
