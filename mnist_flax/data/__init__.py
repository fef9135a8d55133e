"""Datasets, prepared by TFDS without TensorFlow, decoded once and read as arrays; and pictures of drawn digits."""
