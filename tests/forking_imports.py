"""Imported once, by the process from which commands are forked; no module here starts a device or a thread."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import matplotlib.figure  # noqa: F401
    import orbax.checkpoint.v1  # noqa: F401
    import rich.progress  # noqa: F401
    import scipy.special  # noqa: F401
    import tyro  # noqa: F401

    import mnist_flax.evaluate.__main__  # noqa: F401
    import mnist_flax.export.__main__  # noqa: F401
    import mnist_flax.predict  # noqa: F401
    import mnist_flax.sweep.worker  # noqa: F401
    import mnist_flax.train.run  # noqa: F401
