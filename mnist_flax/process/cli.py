"""Run a command: parse its arguments, let a signal stop it, and end with one line and an exit code.

    if __name__ == "__main__":
        main(Args, run)

Exit codes: 0 done; 1 the run failed; 2 the input is wrong; 128 + n stopped by signal n, after saving: 129 SIGHUP,
130 SIGINT, 143 SIGTERM.
"""

import contextlib
import gc
import importlib.metadata
import io
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, NoReturn, TypeVar

import tyro

from mnist_flax.errors import InputError, RunError
from mnist_flax.process import signals
from mnist_flax.process.signals import Stopped, StopSignals
from mnist_flax.process.terminal import mute, say, say_on_stderr

Args = TypeVar("Args")


@dataclass(frozen=True)
class Common:
    """The flags of every command, after its own. `main` reads them from `sys.argv`, since parsing itself may fail."""

    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print nothing but warnings and errors."""
    version: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the version and exit."""
    traceback: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show where an error comes from."""


def main(
    args_type: type[Args],
    run: Callable[[Args, StopSignals], None],
    defaults: Callable[[list[str]], dict[str, Any]] = lambda words: {},
) -> NoReturn:
    """Parse the command line into `args_type`, run, and turn what goes wrong into one line and an exit code.

    `defaults` finds, in the words of the command line, fields of `args_type` with other defaults.
    """
    # Imports and tracing make 200,000 objects that stay. Python's default searches them for garbage so often that
    # training starts 0.2 s later.
    gc.set_threshold(100_000)
    if "--traceback" not in sys.argv:
        sys.excepthook = _unexpected
        sys.unraisablehook = _unraisable
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a class may have a name that the terminal cannot show
    if "--version" in sys.argv:
        say(f"mnist_flax {importlib.metadata.version('mnist_flax')}")
        sys.exit()
    try:
        stop_signals = StopSignals()
        args = _parse(args_type, defaults(sys.argv[1:]))
        if "--quiet" in sys.argv:
            mute()
        run(args, stop_signals)
    except InputError as error:
        _fail(error, 2)
    except (RunError, OSError) as error:
        _fail(error, 1)
    except Stopped as stop:
        say_on_stderr(str(stop))
        _leave(stop.exit_code)
    signals.ignore()  # the command has finished
    _leave(0)


def _command() -> str | None:
    """The command line that started this process, such as `python -m mnist_flax.train`; None for other programs."""
    spec = sys.modules["__main__"].__spec__
    if not (spec and spec.name.startswith("mnist_flax.")):
        return None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _parse(args_type: type[Args], defaults: dict[str, Any]) -> Args:
    """Parse the command line with tyro, and turn its framed error message into one line."""
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        tyro._experimental_options["ansi_codes"] = False
    message = io.StringIO()
    flags: Any = dataclass(frozen=True)(type(args_type.__name__, (Common, args_type), {"__doc__": args_type.__doc__}))
    required = {field.name for field in fields(flags) if field.default is field.default_factory is MISSING}
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                flags,
                default=flags(**dict.fromkeys(required, tyro.MISSING) | defaults) if defaults else None,
                prog=_command(),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        lines = [line.strip("│╰╯ ") for line in message.getvalue().splitlines()]
        title_lines = 1 if lines[0].startswith("╭") else 2  # ASCII frames have a rule below the title
        lines = lines[title_lines:]
        parts = " ".join("\n" if line and not line.strip("─-") else line for line in lines).split("\n")
        text = parts[0].strip().rstrip(".")
        if suggestion := [p for p in parts if "Perhaps you meant" in p]:
            flag = next(word for word in suggestion[0].split() if word.startswith("--"))
            text += f"; did you mean {flag}?"
        raise InputError(f"{text} (--help lists every flag)") from None


def refuse_float64() -> None:
    """Raise `InputError` where JAX is told to make float64 the default, since runs and their files are float32."""
    jax, told = sys.modules.get("jax"), os.environ.get("JAX_ENABLE_X64", "")
    if jax.config.jax_enable_x64 if jax else told.lower() not in ("", "0", "false", "n", "no", "off", "f"):
        raise InputError("jax_enable_x64=True asks for float64, and runs are float32; unset JAX_ENABLE_X64")


def _unexpected(kind: type[BaseException], error: BaseException, _: object) -> None:
    """Print an error that no command expects in one line."""
    text = " ".join(str(error).split())[:300]
    say_on_stderr(f"error: unexpected {kind.__name__}: {text} (--traceback shows where)")


def _unraisable(info: Any) -> None:
    """Print an error that ended nothing, such as one in a library's thread, in one line."""
    if str(info.exc_value) != "Event loop is closed":  # of orbax's threads, after a save that found no space
        say_on_stderr(f"warning: {type(info.exc_value).__name__}: {' '.join(str(info.exc_value).split())[:300]}")


def _fail(error: object, code: int) -> NoReturn:
    if "--traceback" in sys.argv:
        traceback.print_exc()
    say_on_stderr(f"error: {error}")
    _leave(code)


def _leave(code: int) -> NoReturn:
    if _command():  # not called from another program
        with contextlib.suppress(BrokenPipeError):  # the reader of our output may have ended
            sys.stdout.flush()
        signals.leave(code)
    sys.exit(code)
