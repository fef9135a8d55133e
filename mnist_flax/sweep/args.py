"""The flags of `python -m mnist_flax.sweep`."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Args:
    """Train every member of an experiment file; the same command again continues the sweep, or joins a running one.

    The file defines BASE (a Config) and either sweep(), which yields the members' overrides of BASE, or search(trial),
    a space from which Optuna samples TRIALS members. The best configuration on BASE's eval_split is then trained again
    with FINAL_SEEDS new seeds (default 10; 0: no final test) and the overrides in FINAL (default: on all of train,
    evaluated on test). An optional method(overrides) labels members: the best of each label is chosen. KEEP
    says how many networks of the selection stay on the disk, the best ones (default 3). With an optional ADAPT,
    Halving(...) or PopulationBased(...), members stop, or copy others, while they train.
    """

    experiment: tyro.conf.Positional[Path]
    """The experiment file, such as experiments/regularization.py."""
    workdir: Path
    """Directory of the sweep; created if it is missing."""
    trials: int | None = None
    """Members of a search, instead of the file's TRIALS; a larger number continues a finished search."""
    population: int | None = None
    """Members trained as one program. Default: what fits into memory, at most 16 per device; for a search at most an
    eighth of its trials, so that later trials learn from earlier ones."""
    workers: int = 1
    """Worker processes on this host; they share the CPU's cores."""
    worker: bool = False
    """Be one of the --workers, instead of starting them."""
    dry_run: bool = False
    """Show what would be trained, how long it would take and what it would need, and write nothing. It takes a few
    steps of every program, for the time, and discards them."""
    replay: str | None = None
    """A finished member of a PopulationBased, such as 0003: train its whole lineage again as one run, into --out."""
    out: Path | None = None
    """Directory of the replayed run."""
    storage: str | None = None
    """Database (SQLAlchemy URL, such as postgresql+psycopg://joe@host/sweeps) for the trials, for hosts that share no
    file system. Each host keeps the checkpoints of
    the members that it trains. In one database the same experiment is one sweep, whatever the workdir. Default: a
    journal in the workdir."""
    figures: bool = True
    """Draw figures of the results."""
    tensorboard: bool = True
    """Write event files of all members into the workdir's tensorboard/."""
    data_dir: Path | None = None
    """Where prepared datasets live, laid out as TFDS does. Default: this package's directory in the user's cache."""
    manual_dir: Path | None = None
    """Directory with the four canonical files of mnist, fashion_mnist or kmnist, used instead of their URLs."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that the next run starts sooner."""
