"""Split strings mean what they mean to TFDS."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_flax.data import splits
from mnist_flax.errors import InputError

SIZES = {"train": 100, "test": 50}
BOUNDS = st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 49), st.integers(1, 50)).filter(
    lambda bounds: bounds[1] < bounds[2]
)


@settings(deadline=None)  # the first example imports TFDS
@given(st.integers(1, 50), st.one_of(st.none(), st.integers(-50, 50)), st.one_of(st.none(), st.integers(-50, 50)))
def test_slices_are_those_of_tfds(count: int, start: int | None, stop: int | None) -> None:
    import tensorflow_datasets as tfds

    text = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    info = tfds.core.SplitInfo(name="train", shard_lengths=[count], num_bytes=0, filename_template=None)
    try:
        (want,) = tfds.core.ReadInstruction.from_spec(text).to_absolute({"train": info})
        want = ("train", want.from_ or 0, count if want.to is None else want.to)
    except (ValueError, AssertionError):
        want = ("train", 0, 0)
    if want[1] >= want[2]:
        with pytest.raises(InputError):
            splits.ranges(text, {"train": count})
    else:
        assert splits.ranges(text, {"train": count}) == [want]


@settings(deadline=None)
@given(BOUNDS, BOUNDS, BOUNDS)
def test_overlap_is_that_of_the_sets(a: tuple, b: tuple, c: tuple) -> None:
    texts = [f"{name}[{start}:{stop}]" for name, start, stop in (a, b, c)]
    sets = [{(name, index) for index in range(start, stop)} for name, start, stop in (a, b, c)]
    assert splits.overlap(texts[0], texts[1], SIZES) == bool(sets[0] & sets[1])
    assert splits.overlap(f"{texts[0]}+{texts[1]}", texts[2], SIZES) == bool((sets[0] | sets[1]) & sets[2])


def test_an_empty_part_shares_nothing() -> None:
    text = "train[5:5]+test"
    assert splits.ranges(text, {"train": 10, "test": 3}) == [("test", 0, 3)]
    assert not splits.overlap(text, "train", {"train": 10, "test": 3})


def test_only_a_dataset_of_known_sizes_is_checked_early() -> None:
    splits.check("mnist", "train[:500]", "test")
    splits.check("emnist/digits", "train[:10**9]")
    with pytest.raises(InputError, match="split='dev' is not a split"):
        splits.check("mnist", "train", "dev")
