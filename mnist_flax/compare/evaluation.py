"""Evaluate runs on a split: each network's numbers, and which examples it gets right."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_flax import inference, metrics
from mnist_flax.compare.runs import Run
from mnist_flax.data import splits
from mnist_flax.errors import RunError
from mnist_flax.workdir import claim
from mnist_flax.workdir.run_info import trained_on

if TYPE_CHECKING:
    import numpy as np


class Evaluation(NamedTuple):
    """A run's network on a split."""

    scores: dict[str, Any]  # JSON values; see `evaluate`
    hits: "np.ndarray"  # bool [N]: which examples the network gets right
    examples: tuple[Any, ...]  # equal where the examples are the same: the data's checksums, and the split's ranges


def evaluate(run: Run, step: str, split: str | None, data_dir: Path | None) -> Evaluation | str:
    """Evaluate a run, on its evaluation split if `split` is None; or say why that cannot be done.

    The scores are step, dataset, split, examples, correct, accuracy, accuracy_interval, cross_entropy, epochs and
    seconds (of training up to that step), trained_on_it: whether the run, or the one with whose weights it began, has
    been trained on examples of the split, and chosen_on_it: whether its step was chosen by its accuracy there.
    Raises `InputError` for a step, a split or a dataset that is missing.
    """
    from mnist_flax.workdir import checkpoint

    config = run.info.config
    split = split or config.eval_split
    if not checkpoint.exists(claim.checkpoints_dir(run.path)):
        return "has no checkpoint yet"
    try:
        number, model, variables = inference.load_network(run.path, run.info, step)
    except RunError as error:
        return str(error)
    dataset = inference.find_dataset(run.info, data_dir)
    data = dataset.read(split)
    logits = inference.logits_of(model, variables, data.images, config.eval_batch_size)
    report = metrics.evaluation_report(logits, data.labels)
    scores = {"step": number, "dataset": config.dataset, "split": split}
    scores |= {k: report[k] for k in ("examples", "correct", "accuracy", "accuracy_interval", "cross_entropy")}
    until = [line for line in run.lines if line["split"] == "train" and line["step"] <= number]
    scores |= {"epochs": len(until), "seconds": round(sum(line["seconds"] for line in until), 3)}
    seen = [config.train_split, *trained_on(run.info.initial, dataset.sha256)]
    scores["trained_on_it"] = any(splits.overlap(each, split, dataset.examples) for each in seen)
    scores["chosen_on_it"] = step == "best" and splits.overlap(config.eval_split, split, dataset.examples)
    examples = (*sorted(dataset.sha256.items()), *splits.ranges(split, dataset.examples))
    return Evaluation(scores, logits.argmax(axis=1) == data.labels, examples)


def most_common_examples(evaluations: list[Evaluation]) -> tuple[Any, ...]:
    """The examples on which most runs were evaluated; of equals, those of the first."""
    return Counter(evaluation.examples for evaluation in evaluations).most_common(1)[0][0]
