"""The flags that let several processes train one network; `distributed` does what they say, and needs JAX."""

from dataclasses import dataclass

from mnist_flax.errors import InputError


@dataclass(frozen=True)
class DistributedFlags:
    """Several processes, on this host or many, that train one network."""

    distributed: bool = False
    """Be one of several processes that train together, on this host or many; all see the workdir, one writes it."""
    coordinator: str | None = None
    """Host and port of process 0. Default, as of the next two: what Slurm, Kubernetes, Cloud TPU or Open MPI say."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def check(self) -> None:
        """Raise `InputError` unless they fit together."""
        values = self.coordinator, self.num_processes, self.process_id
        if values == (None, None, None):
            return
        if not self.distributed or self.coordinator is None or self.num_processes is None or self.process_id is None:
            given = f"coordinator={values[0]!r}, num_processes={values[1]}, process_id={values[2]}"
            raise InputError(f"{given}: give all three together with --distributed, or none of them")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(f"process_id={self.process_id} is out of range; give 0 to {self.num_processes - 1}")
