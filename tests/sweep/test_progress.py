"""What a sweep shows while it runs."""

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mnist_flax.sweep.progress import SweepProgress


def stage(finished: list[float], running: list[dict[int, float]]) -> Any:
    """A stage of ten members."""
    queue = SimpleNamespace(
        objective=lambda trial: trial.value, running=lambda: [SimpleNamespace(intermediate_values=v) for v in running]
    )
    done = [SimpleNamespace(value=value, user_attrs={}) for value in finished]
    return SimpleNamespace(name="selection", members=dict.fromkeys(range(10)), finished=lambda: done, queue=queue)


def test_a_line_for_a_pipe(capsys: pytest.CaptureFixture) -> None:
    progress = SweepProgress(lambda: 130.0)
    progress.watch(stage([0.91, 0.97], [{1: 0.5, 2: 0.95}, {1: 0.7}]))
    progress.watch(stage([0.91, 0.97], [{1: 0.5, 2: 0.95}, {1: 0.7}]))  # nothing new
    line = "selection: 2 of 10 done, 2 running, epoch 2, accuracy: best of all 97.00%, median of the running 82.50%"
    line += ", about 2 min left"
    assert capsys.readouterr().out == line + "\n"
    SweepProgress(lambda: None).watch(stage([], []))
    assert capsys.readouterr().out == "selection: 0 of 10 done, 0 running, epoch 0\n"


def test_a_table_for_a_terminal() -> None:
    progress, shown = SweepProgress(lambda: None), []
    progress._live = SimpleNamespace(update=shown.append)  # type: ignore[assignment]
    progress.watch(stage([0.91], [{1: 0.95}]))
    console = Console(width=100)
    with console.capture() as printed:
        console.print(shown[-1])
    header, values = (line.split() for line in printed.get().splitlines() if line.strip("─ "))
    assert " ".join(header) == "stage done running epoch best of all median of running diverged left"
    assert values == ["selection", "1", "of", "10", "1", "1", "95.00%", "95.00%"]
