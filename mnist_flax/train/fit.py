"""Train from Python.

run = fit(Config(epochs=8), "exp1")
print(run.history[-1]["accuracy"])
model, variables = run.load()
"""

import contextlib
import io
import json
from pathlib import Path

from mnist_flax.config import Config
from mnist_flax.inference import Run
from mnist_flax.process.signals import Interrupts, Stopped
from mnist_flax.train import __main__ as command
from mnist_flax.workdir import claim


def fit(
    config: Config,
    workdir: str | Path,
    *,
    init_from: str | Path | None = None,
    data_dir: Path | None = None,
    figures: bool = True,
    tensorboard: bool = True,
    quiet: bool = True,
) -> Run:
    """Train a network into a directory, as the command does: the same call again resumes, or finds the run done.

    Ctrl-C, in a notebook too, saves and raises `KeyboardInterrupt`; the same call goes on from there.

    Args:
      config: all settings.
      workdir: the run's directory.
      init_from: another run's directory, whose latest weights this run begins with.
      data_dir: where prepared datasets live; None is this package's directory in the user's cache.
      figures: draw the first images and the curves into `figures/`.
      tensorboard: write event files.
      quiet: print nothing but warnings.

    Returns:
      The run: its `history`, and `load()` for the network.

    Raises:
      InputError: what the command ends with exit code 2 for: a wrong setting, another run in the directory.
      RunError: it diverged, or could not be saved.
    """
    source = Path(init_from) if init_from else None
    args = command.Args(
        Path(workdir), config, init_from=source, data_dir=data_dir, figures=figures, tensorboard=tensorboard
    )
    signals = Interrupts()
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        try:
            command.run(args, signals)
        except Stopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
    path = Path(workdir).expanduser().absolute()
    if signals.received:  # in the last call: the run is done, but the caller wants to stop
        raise KeyboardInterrupt(f"{path} is finished and saved")
    lines = claim.metrics_file(path).read_text().splitlines()
    return Run(path, config, [json.loads(line) for line in lines])
