"""Keep compiled programs in the user's cache, between processes."""

import hashlib
import platform
from pathlib import Path

import jax
import jaxlib


def use_compilation_cache(directory: Path) -> None:
    """Keep compiled programs between processes: the same programs, compiled once.

    Apart for each jaxlib and kind of processor: a program that meets another one can crash it.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        processor = platform.processor()
    key = hashlib.sha256(f"{jaxlib.__version__} {platform.machine()} {processor}".encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(directory / key))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
