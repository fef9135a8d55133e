"""One process's share of a sweep: claim members, train them as populations, tell what came of it, until all is done.

work(stage, ledger, dataset, facts, size=16, board=board, signals=signals, report=report)
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mnist_flax import console, data, members, record, workdir
from mnist_flax.board import Board
from mnist_flax.config import Config
from mnist_flax.ledger import Ledger
from mnist_flax.members import Member
from mnist_flax.stages import Stage, program_of

if TYPE_CHECKING:
    import optuna

    from mnist_flax.fit import Event

_KEEP = 3  # members of the selection whose checkpoints stay


def work(
    stage: Stage,
    ledger: Ledger,
    dataset: data.Dataset,
    facts: Callable[[Config], dict[str, Any]],
    *,
    size: int,
    board: Board,
    signals: console.StopSignals,
    report: Callable[[], object],
) -> None:
    """Return when every member of the stage is done, by whomever.

    Args:
      stage: what is to be done.
      ledger: of this stage.
      dataset: of all members.
      facts: what `record.Run` is to hold about the data of a config.
      size: members of a population.
      board: what people see.
      signals: a stop saves all members and gives them back.
      report: is called when there are new results.

    Raises:
      RunError: a member could not be saved.
      console.Stopped: by a signal.
    """
    while True:
        ledger.retake(lambda trial: workdir.is_held(stage.home(ledger.first_number(trial))))
        ledger.enqueue(stage.members)
        if signals.received:
            raise console.Stopped(signals.received, "nothing was running; the same command goes on")
        done = stage.finished(ledger)
        if trials := ledger.ask(size):
            board.begin(stage.name, len(done), len(stage.members))
            _train(stage, ledger, trials, dataset, facts, board, signals)
            report()
        elif len(done) < len(stage.members):
            board.wait(len(stage.members) - len(done))
            time.sleep(1)
        else:
            return


def _train(
    stage: Stage,
    ledger: Ledger,
    trials: "list[optuna.Trial]",
    dataset: data.Dataset,
    facts: Callable[[Config], dict[str, Any]],
    board: Board,
    signals: console.StopSignals,
) -> None:
    """Train claimed members to the end: those that share a program and a start at once."""
    with contextlib.ExitStack() as claims:
        populations: dict[tuple[Config, int], list[tuple[optuna.Trial, Member]]] = {}
        for trial in trials:
            config = stage.config(overrides := stage.overrides(trial))
            trial.set_user_attr("overrides", overrides)
            path = stage.home(ledger.first_number(trial))
            recorded = claims.enter_context(workdir.claim(path, record.Run(config, facts(config), record.versions())))
            member = members.open_member(path, recorded, console.warn)
            populations.setdefault((program_of(config), member.start), []).append((trial, member))
        waiting = list(populations.values())
        while waiting:
            group = waiting[0]
            config, running = group[0][1].recorded.config, [member for _, member in group]
            splits = dataset.read(config.train_split), dataset.read(config.eval_split)
            event = None  # where the members are at their end already
            with signals.deferred():
                for event in members.train(running, *splits):
                    board.update(event, running)
                    if signals.received and event.step < running[0].total_steps:
                        members.save(running, running, event)
                        ledger.release([trial for each in waiting for trial, _ in each])
                        where = f"the {len(running)} running members are saved in {stage.path}"
                        raise console.Stopped(signals.received, f"{where}; the same command goes on from there")
                _finish(stage, ledger, group, event)
            waiting.pop(0)
    _prune(stage, ledger)


def _finish(stage: Stage, ledger: Ledger, group: "list[tuple[optuna.Trial, Member]]", event: "Event | None") -> None:
    """Save the members that are to stay, then tell: a kill between the two loses nothing."""
    running = [member for _, member in group]
    values = {id(member): _objective(member)[-1] for member in running if member.diverged_at is None}
    before = [trial.value for trial in stage.finished(ledger) if trial.value is not None]
    limit = sorted([*before, *values.values()], reverse=True)[:_KEEP][-1:]
    best = [member for member in running if id(member) in values and values[id(member)] >= limit[0]]
    if event:
        members.save(running if stage.name == "final" else best, running, event)
    note = {"versions": record.versions(), "commit": record.commit()}
    for trial, member in group:
        seconds = sum(line["seconds"] for line in member.info["history"])
        ledger.tell(
            trial,
            _objective(member),
            values.get(id(member)),
            note
            | {
                "history": member.info["history"],
                "seconds": round(seconds, 3),
                "diverged_at": member.diverged_at,
                "workdir": str(member.path.relative_to(stage.path.parent)),
            },
        )


def _objective(member: Member) -> list[float]:
    """Accuracy on the evaluation split after each epoch."""
    return [line["accuracy"] for line in member.info["history"] if line["split"] == "eval"]


def _prune(stage: Stage, ledger: Ledger) -> None:
    """Remove the directories of finished members that are not among the best; all there is to know of them is told."""
    if stage.name == "final":
        return
    finished = stage.finished(ledger)
    ranked = sorted((t for t in finished if t.value is not None), key=lambda trial: (-(trial.value or 0), trial.number))
    kept = {trial.user_attrs["workdir"] for trial in ranked[:_KEEP]}
    for trial in finished:
        if trial.user_attrs["workdir"] not in kept:
            shutil.rmtree(stage.path.parent / trial.user_attrs["workdir"], ignore_errors=True)
