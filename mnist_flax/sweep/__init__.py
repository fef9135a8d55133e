"""Train every member of an experiment: `python -m mnist_flax.sweep experiments/regularization.py --workdir DIR`."""
