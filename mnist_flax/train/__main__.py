"""Train a network into a directory; run the same command again to resume, or to hear that it is done.

python -m mnist_flax.train --workdir exp1 --epochs 10 --learning-rate 3e-4
"""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from mnist_flax.config import Config, flatten, without_effect
from mnist_flax.data import datasets, splits
from mnist_flax.errors import InputError, wrong
from mnist_flax.monitor.async_writer import AsyncWriter
from mnist_flax.process import cli
from mnist_flax.process.distributed_flags import DistributedFlags
from mnist_flax.process.signals import Interrupts, StopSignals
from mnist_flax.process.terminal import mute, track, warn
from mnist_flax.train import init_from
from mnist_flax.workdir import claim, run_info
from mnist_flax.workdir.run_info import changed_versions, commit, versions


@dataclass(frozen=True)
class Args:
    """Train the network. The defaults are the Keras tutorial; the same command again resumes."""

    workdir: Path
    """Directory of the run; created, resumed, or found finished."""
    config: Config = field(default_factory=Config)
    defaults: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """A run's config.json, whose settings are the defaults of those that no flag gives."""
    init_from: Path | None = None
    """Another run's directory: begin with the weights of its latest checkpoint, not with random ones."""
    data_dir: Path | None = None
    """Where prepared datasets live, laid out as TFDS does. Default: this package's directory in the user's cache."""
    manual_dir: Path | None = None
    """Directory with the four canonical files of mnist, fashion_mnist or kmnist, used instead of their URLs."""
    figures: bool = True
    """Draw the first training images, and how loss and accuracy went, into the workdir's figures/."""
    tensorboard: bool = True
    """Write event files into the workdir's tensorboard/."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that the next run starts sooner."""
    profile: Path | None = None
    """Write a trace of three calls of steps into this directory, for TensorBoard's profiler or Perfetto."""
    processes: DistributedFlags = DistributedFlags()


def _defaults(words: list[str]) -> dict[str, Any]:
    """The values of `Args` that a file, named by `--config` on the command line, gives instead of the defaults."""
    files = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--config"]
    files += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    return {"config": run_info.read_settings(Path(files[-1]).expanduser())} if files else {}


def run(args: Args, signals: StopSignals | Interrupts) -> None:
    """The command: check everything that can be wrong, then write."""
    path, config = args.workdir.expanduser().absolute(), args.config
    source = args.init_from and args.init_from.expanduser().absolute()
    cli.refuse_float64()
    claim.check(path, config)
    init_from.check(source, path, config)
    splits.check(config.dataset, config.train_split, config.eval_split)
    args.processes.check()
    profile = args.profile and args.profile.expanduser().absolute()
    if profile and not next(path for path in (profile, *profile.parents) if path.exists()).is_dir():
        raise wrong("profile", profile, "is not a directory", "give another --profile")
    for text in without_effect(config):
        warn(text)

    with AsyncWriter(figures=args.figures, tensorboard=args.tensorboard) as writer:  # starts during the imports
        from mnist_flax import placement
        from mnist_flax.placement import use_compilation_cache
        from mnist_flax.process import distributed
        from mnist_flax.train.run import train

        if args.compilation_cache:
            use_compilation_cache(datasets.cache_dir() / "xla")
        if (flags := args.processes).distributed:
            distributed.join(flags.coordinator, flags.num_processes, flags.process_id)
            if not distributed.is_leader():
                mute()
                writer.cancel()
            distributed.check_same({"workdir": str(path)} | flatten(config) | versions() | {"commit": commit()})
        with distributed.refused_together():
            mesh = placement.data_mesh(config.batch_size)
            data_dir = (args.data_dir or datasets.default_data_dir()).expanduser().absolute()
            manual_dir = args.manual_dir.expanduser().absolute() if args.manual_dir else None
            dataset = datasets.open_dataset(config.dataset, data_dir, manual_dir, track)
            info = datasets.dataset_info(dataset, config.train_split, config.eval_split, data_dir)
            initial = init_from.find(source, path, info)
            _check_splits(path, config, dataset, initial)
            by_step = run_info.read(path).hparams_by_step if claim.is_run(path) else {}
            ours = dataclasses.replace(run_info.new(config, info, initial), hparams_by_step=by_step)
        told = {f"initial.{name}": value for name, value in initial.items()} | {"hparams_by_step": str(by_step)}
        distributed.check_same({name: value for name, value in info.items() if name != "data_dir"} | told)
        with contextlib.ExitStack() as stack:
            with distributed.refused_together():
                recorded = stack.enter_context(claim.claim(path, ours)) if distributed.is_leader() else ours
            if changed := changed_versions(recorded):
                others = ", ".join(changed)
                warn(f"this run began under other versions, so its last digits may differ: {others}")
            train(path, recorded, dataset, mesh, signals, writer, profile)


def _check_splits(path: Path, config: Config, dataset: datasets.Dataset, initial: dict[str, Any]) -> None:
    """Refuse a new run that is evaluated on what it, or its first weights, are trained on; warn of an older one."""
    try:
        splits.check_disjoint(config.train_split, config.eval_split, dataset.examples)
        for split in run_info.trained_on(initial, dataset.sha256):
            if splits.overlap(split, config.eval_split, dataset.examples):
                problem = f"shares examples with {split}, on which init_from={initial['workdir']!r} was trained"
                raise wrong("eval_split", config.eval_split, problem, "give a split that it has not seen")
    except InputError as error:
        if not claim.is_run(path):
            raise
        warn(str(error))


if __name__ == "__main__":
    cli.main(Args, run, _defaults)
