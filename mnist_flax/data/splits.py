"""Find the examples that a TFDS split string means.

ranges("train[:50%]", {"train": 60000, "test": 10000})  # [("train", 0, 30000)]
"""

import re

from mnist_flax.data import prepare
from mnist_flax.errors import InputError


def ranges(split: str, examples: dict[str, int]) -> list[tuple[str, int, int]]:
    """The (name, start, stop) that a split string means; raises `InputError` if it is wrong, or has no example."""
    if split in examples:
        return [(split, 0, examples[split])]
    # The common form, without the half second that importing TFDS takes.
    match = re.fullmatch(r"(\w+)\[(-?\d+)?:(-?\d+)?\]", split)
    if match and match[1] in examples and any(match.groups()[1:]):
        count = examples[match[1]]
        bounds = [int(bound) if bound else None for bound in match.groups()[1:]]
        start, stop, _ = slice(*bounds).indices(count)
        if all(bound is None or abs(bound) <= count for bound in bounds) and start < stop:
            return [(match[1], start, stop)]
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0, filename_template=None)
        for name, count in examples.items()
    }
    try:
        if "shard" in split:
            raise ValueError
        ranges = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        cut = [(r.splitname, r.from_ or 0, examples[r.splitname] if r.to is None else r.to) for r in ranges]
    except (ValueError, AssertionError, KeyError):
        raise InputError(f"split={split!r} is not a split of this dataset; the splits are {examples}") from None
    parts = [(name, start, stop) for name, start, stop in cut if start < stop]
    if not parts:
        raise InputError(f"split={split!r} holds no example; the splits are {examples}")
    return parts


def check(name: str, *splits: str) -> None:
    """Raise `InputError` for a wrong split of a dataset whose sizes are known before it is prepared."""
    if name in prepare.IDX_DATASETS:
        for split in splits:
            ranges(split, prepare.IDX_EXAMPLES)


def check_disjoint(train_split: str, eval_split: str, examples: dict[str, int]) -> None:
    """Raise `InputError` if a network would be evaluated on examples that it is trained on."""
    if overlap(train_split, eval_split, examples):
        text = f"eval_split={eval_split!r} shares examples with train_split={train_split!r}"
        raise InputError(f"{text}; split one off the other, such as train[:50000] and train[50000:]")


def overlap(a: str, b: str, examples: dict[str, int]) -> bool:
    """Whether two splits share an example; `examples` maps each split of the dataset to its number of examples."""
    return any(
        name == other and start < end and begin < stop
        for name, start, stop in ranges(a, examples)
        for other, begin, end in ranges(b, examples)
    )
