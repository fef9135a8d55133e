"""Under which versions a number was made: Python, the libraries, and the commit of this package."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path


def versions() -> dict[str, str]:
    """Python and the libraries whose versions can change a result's last digits."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


@functools.cache  # of the code that this process runs, whatever is committed later
def commit() -> str:
    """The git commit of this code, ending in + where its files differ from it; empty outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parents[1])]  # the package's root: all of it counts as its files
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True).stdout
    except OSError:  # no git here
        return ""
    return head + ("+" if head and changed else "")
