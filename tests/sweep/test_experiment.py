"""An experiment file is checked as a whole before anything trains: the message names the file and the line."""

import os
from pathlib import Path

import pytest
from conftest import alarm

from mnist_flax.config import Config, Hyperparams
from mnist_flax.errors import InputError
from mnist_flax.sweep import experiment, experiment_file
from mnist_flax.sweep.experiment import override, overrides_key, to_plain

HEAD = """from mnist_flax import Config
BASE = Config(train_split="train[:200]", eval_split="train[200:400]")
"""
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(tmp_path: Path, text: str, **kwargs) -> experiment.Experiment:
    path = tmp_path / "study.py"
    path.write_text(HEAD + text)
    return experiment_file.load(path, **kwargs)


GRID = """
def sweep():
    for l2 in (0.0, 1e-3):
        yield {"l2": l2, "seed": 1}
    yield {OVERRIDES}
"""
SEARCH = """
TRIALS = 3
def search(trial):
    return {
        "l2": trial.suggest_float("l2", 0.0, 1.0),
        OVERRIDES
    }
"""
BAD = {
    GRID.replace("OVERRIDES", "'leraning_rate': 1"): r":7: there is no field 'leraning_rate'.*did you mean learning_r",
    GRID.replace("OVERRIDES", "'zzz': 1"): r":7: there is no field 'zzz'.*the fields are learning_rate, ",
    GRID.replace("OVERRIDES", "'dropout_rate': 1.5"): r":7: overrides: dropout_rate=1.5 is out of range; give from 0",
    GRID.replace("OVERRIDES", "'widths': 'a'"): r":7: overrides: widths='a' has the wrong type, not a list of numbers",
    GRID.replace("OVERRIDES", "'eval_split': 'test'"): r":7: eval_split='test' cannot differ between members; set",
    GRID.replace("OVERRIDES", "'l2': 0.0, 'seed': 1"): r":7: .* is there twice; give each member another seed",
    GRID.replace("{OVERRIDES}", "3"): r":7: overrides must be a dict such as .*, not 3",
    GRID.replace("{OVERRIDES}", "1 / 0"): r":7: ZeroDivisionError: division by zero",
    "def sweep(): return []": r":3: sweep\(\) yields no member",
    "def sweep(): return 3": r": TypeError: 'int' object is not iterable",
    "def sweep(:": r":3: invalid syntax",
    "import nonsuch": r":3: ModuleNotFoundError: No module named 'nonsuch'",
    "BASE = Config(epochs=0)": r":3: epochs=0 is out of range",
    "BASE = 3": r" must define BASE = Config",
    "import sys; sys.exit()": r":3: SystemExit",
    "def sweep():\n    yield {'l2': 0}\n    yield {'l2': 0.0}": r":5: .* is there twice",
    "def sweep():\n    yield {}\n    yield {'seed': 0}": r":5: .* is there twice",
    "FINAL = {'dataset': 'kmnist'}\ndef sweep(): yield {}": r".*dataset='kmnist' cannot differ",
    "FINAL = {'seed': 3}\ndef sweep(): yield {}": r".*FINAL cannot set seed",
    "FINAL = {'l2': 0.1}\ndef sweep(): yield {'l2': 0.2}": r".*FINAL cannot set l2, in which members differ",
    "FINAL = {'epochs': 1}\ndef sweep(): yield {'warmup_epochs': 2.0}": r".*warmup_epochs=2.0 is out of range",
    "TRIALS = 1\ndef search(trial): return {'train_split': 'train'}": r":4: train_split='train' cannot differ",
    "def sweep(): yield {}\0": r": source code string cannot contain null bytes",
    "": r" must define one of sweep\(\) and search\(trial\); it has none",
    "def sweep(): yield {}\ndef search(trial): return {}": r".*it has sweep and search",
    "FINAL_SEEDS = 10**5000\ndef sweep(): yield {}": r".*FINAL_SEEDS=a number of many digits must be",
    "def sweep(): yield {}()": r":3: TypeError: 'dict' object is not callable",
    "FINAL_SEEDS = -1\ndef sweep(): yield {}": r".*FINAL_SEEDS=-1 must be a whole number from 0",
    "FINAL = {'nonsuch': 1}\ndef sweep(): yield {}": r".*there is no field 'nonsuch'",
    "def method(o): return 3\ndef sweep(): yield {}": r".*method\(\{\}\) must be a string, not 3",
    "def search(trial): return {}": r".*TRIALS=None must be a whole number from 1",
    "FINAL_SEEDS = 10**9\ndef sweep(): yield {}": r".*FINAL_SEEDS=1000000000 must be a whole number from 0 to 1000000",
    "TRIALS = 10**9\ndef search(trial): return {}": r".*TRIALS=1000000000 must be a whole number from 1 to 1000000",
    "def sweep():\n    while True: yield {}": r":4: sweep\(\) yields more than 1,000,000 members; yield fewer",
    "FINALS = {}\ndef sweep(): yield {}": r": no sweep reads FINALS; did you mean FINAL\?",
    "FINAL_SEED = 3\ndef sweep(): yield {}": r": no sweep reads FINAL_SEED; did you mean FINAL_SEEDS\?",
    "KEEP = 0\ndef sweep(): yield {}": r".*KEEP=0 must be a whole number from 1 to 1000000",
    "KEEP = 2.5\ndef sweep(): yield {}": r".*KEEP=2.5 must be a whole number from 1",
    "KEEPS = 5\ndef sweep(): yield {}": r": no sweep reads KEEPS; did you mean KEEP\?",
    "def sweeps(): pass\ndef sweep(): yield {}": r": no sweep reads sweeps; did you mean sweep\?",
    SEARCH.replace("OVERRIDES", '"leraning_rate": 1'): r":8: there is no field 'leraning_rate'",
    SEARCH.replace("OVERRIDES", '"b1": trial.suggest_float("b1", 1.0, 2.0)'): r":8: overrides: b1=1\..* is out of",
    SEARCH.replace("OVERRIDES", '"b1": trial.sugest()'): r":8: AttributeError: .*sugest",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_wrong_is_named_with_its_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.py" + BAD[text]) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "study.py")
    for path in (tmp_path / "study.py", Path("/dev/zero")):
        with alarm(10), pytest.raises(InputError, match="is a pipe or a device; give an experiment file"):
            experiment_file.load(path)


def test_the_question_may_be_of_any_type(tmp_path: Path) -> None:
    assert load(tmp_path, "__doc__ = 5\ndef sweep(): yield {}").question == "5"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        experiment_file.load(tmp_path / "none.py")


def test_trials_are_of_a_search(tmp_path: Path) -> None:
    assert load(tmp_path, SEARCH.replace("OVERRIDES", ""), trials=9).trials == 9
    with pytest.raises(InputError, match="trials=9 is for a search"):
        load(tmp_path, "def sweep(): yield {}", trials=9)


SIZES = {"train": 60000, "test": 10000}


@pytest.mark.parametrize(
    ("splits", "complaint"),
    [
        ('train_split="train[:200]", eval_split="train[200:400]"', None),
        ('train_split="train[:50%]", eval_split="train[50%:]"', None),
        ('train_split="train[:201]", eval_split="train[200:400]"', "shares examples with train_split"),
        ('train_split="train", eval_split="train[:100]"', "shares examples with train_split"),
        ('train_split="train", eval_split="test"', "shares examples with the test's, 'test'"),
        ('train_split="train[:200]", eval_split="test[9000:]"', "shares examples with the test's, 'test'"),
    ],
)
def test_nothing_is_selected_on_what_was_seen(splits: str, complaint: str | None, tmp_path: Path) -> None:
    study = load(tmp_path, f"BASE = Config({splits})\ndef sweep(): yield {{}}")
    if complaint is None:
        study.check_no_leakage(SIZES)
        return
    with pytest.raises(InputError, match=complaint):
        study.check_no_leakage(SIZES)


def test_members_of_other_splits_are_checked_too(tmp_path: Path) -> None:
    for split in ("train[:300]", "test[:10]"):
        with pytest.raises(InputError, match="shares examples with"):
            text = "FINAL = {'eval_split': 'test'}\n" + f"def sweep(): yield {{'train_split': {split!r}}}"
            load(tmp_path, text).check_no_leakage(SIZES)
    base = "BASE = Config(train_split='test[:50]', eval_split='train[:50]')\nTRIALS = 1\n"
    with pytest.raises(InputError, match="shares examples with the test's"):
        load(tmp_path, base + "def search(trial): return {}").check_no_leakage(SIZES)


def test_fresh_seeds_are_fresh(tmp_path: Path) -> None:
    study = load(tmp_path, "FINAL_SEEDS = 3\ndef sweep(): yield {}")
    assert [*study.fresh_seeds([0, 9])] == [1000, 1001, 1002]
    assert [*study.fresh_seeds([0, 1001])] == [1000, 1002, 1003]
    assert [*study.fresh_seeds([])] == [1000, 1001, 1002]


def test_without_a_test_members_may_differ_in_what_they_train_on(tmp_path: Path) -> None:
    text = "def sweep():\n    for n in (50, 200): yield {'train_split': f'train[:{n}]'}"
    load(tmp_path, "FINAL_SEEDS = 0\n" + text).check_no_leakage(SIZES)
    with pytest.raises(InputError, match="FINAL cannot set train_split, in which members differ"):
        load(tmp_path, text)


def test_names_of_its_own_are_the_authors(tmp_path: Path) -> None:
    text = "import math\nSEEDS, WIDTHS, base, methods = 3, (8, 8), BASE, {}\ndef label(o): return ''\n"
    load(tmp_path, text + "def sweep(): yield {}")


def test_a_search_is_known_by_its_source(tmp_path: Path) -> None:
    search = SEARCH.replace("OVERRIDES", "")
    sources = {load(tmp_path, text).source() for text in (search, search.replace("= 3", "= 4"), "# x\n" + search)}
    assert len(sources) == 1
    assert load(tmp_path, search.replace("1.0", "0.5")).source() not in sources


def test_a_search_is_known_by_what_it_uses_of_its_file(tmp_path: Path) -> None:
    text = """
TRIALS, LOW = 3, 1e-6
FINAL_SEEDS = 3
HIGHEST = 1.0
def high(): return HIGHEST
def search(trial):
    "A space."
    return {"l2": trial.suggest_float("l2", LOW, high()), "epochs": BASE.epochs}
OTHER = 5
"""
    source = load(tmp_path, text).source()
    for old, new in {
        "FINAL_SEEDS = 3": "FINAL_SEEDS = 2",
        "OTHER = 5": "OTHER = 6",
        "def search": "# here\ndef search",
    }.items():
        assert old in text and load(tmp_path, text.replace(old, new)).source() == source
    for old, new in {"1e-6": "1e-5", "HIGHEST = 1.0": "HIGHEST = 0.5", "return HIGHEST": "return HIGHEST + 1"}.items():
        assert old in text and load(tmp_path, text.replace(old, new)).source() != source


def test_without_a_test_the_test_split_may_be_looked_at(tmp_path: Path) -> None:
    text = 'BASE = Config(train_split="train", eval_split="test")\nFINAL_SEEDS = 0\ndef sweep(): yield {}'
    load(tmp_path, text).check_no_leakage(SIZES)


def test_overrides() -> None:
    config = override(Config(), {"l2": 0, "widths": [8], "batch_norm_layers": (), "l2_layers": ()})
    assert config == Config(hparams=Hyperparams(l2=0.0), widths=(8,), batch_norm_layers=(), l2_layers=())
    assert overrides_key(to_plain({"b": (1, 2), "a": 1.0})) == '{"a": 1.0, "b": [1, 2]}'


@pytest.mark.parametrize("name", ["regularization", "srivastava2014", "time_to_accuracy", "learning_rate"])
def test_the_studies_are_sound(name: str) -> None:
    path = EXPERIMENTS / f"{name}.py"
    study = experiment_file.load(path)
    study.check_no_leakage(SIZES)
    assert len(path.read_text().splitlines()) <= 60
    assert f"python -m mnist_flax.sweep experiments/{name}.py --workdir sweeps/{name}" in path.read_text()
