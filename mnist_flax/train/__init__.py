"""One run, from its beginning to its end: the command `python -m mnist_flax.train`, and `fit` from Python."""
