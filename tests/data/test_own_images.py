"""A user's own images become a dataset that TFDS and every command open by its name."""

import dataclasses
import gzip
import hashlib
import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from mnist_flax.data import __main__ as data
from mnist_flax.data import datasets, digits, own_images, pictures, sources
from mnist_flax.errors import InputError
from mnist_flax.process import cli
from mnist_flax.process.terminal import no_track


@dataclasses.dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """`python -m mnist_flax.data ... --data-dir tmp_path/data`, in this process."""

    def call(*args: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mnist_flax.data", *map(str, args), "--data-dir", str(tmp_path / "data")])
        with pytest.raises(SystemExit) as exit_:
            cli.main(data.Args, data.run)
        return Result(int(exit_.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def folder(dataset: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pictures of digits, dark on light, some in colour; a broken one, a text, and a class without any."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index, (image, label) in enumerate(zip(*dataset.read("train[:300]"), strict=True)):
        side = int(rng.integers(40, 90))
        ink = Image.fromarray(image[..., 0]).resize((side, side - index % 9))
        paper = Image.new("RGB", (side + 20, side + 40), (230, 220, 210))
        paper.paste((120, 10, 40), (15, 30), ink)
        (root / str(label)).mkdir(exist_ok=True)
        (paper.convert("L") if index % 3 else paper).save(root / str(label) / f"{index:03}.png")
    broken = next((root / "3").iterdir())
    (root / "3" / "broken.png").write_bytes(broken.read_bytes()[:300])
    (root / "3" / "notes.txt").write_text("hello")
    (root / ".cache").touch()
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="session")
def trained(folder: Path, command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data directory with `mydigits`, and a run on it."""
    base = tmp_path_factory.mktemp("own")
    made = command("data", folder, "--name", "mydigits", "--like-mnist", "--data-dir", base / "data")
    assert made.returncode == 0, made.stderr
    flags = ["--dataset", "mydigits", "--data-dir", base / "data", "--widths", "64", "64", "--batch-size", "16"]
    result = command("train", "--workdir", base / "run", *flags, "--epochs", "12", "--no-figures", "--no-tensorboard")
    assert result.returncode == 0, result.stderr
    return base / "data", base / "run"


def test_a_run_learns_predicts_and_is_exported(
    trained: tuple[Path, Path], folder: Path, command: Command, dataset: datasets.Dataset, tmp_path: Path
) -> None:
    _, workdir = trained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["split"] == "eval" and lines[-1]["examples"] == 59 and lines[-1]["accuracy"] > 0.6  # chance: 0.1
    assert command("evaluate", "--workdir", workdir, "--no-figures").returncode == 0
    files = sorted(folder.glob("[0-9]/[0-9]*.png"))[::6]
    answers = command("predict", "--workdir", workdir, "--json", *files).stdout.splitlines()
    right = [json.loads(answer)["label"] == file.parent.name for answer, file in zip(answers, files, strict=True)]
    assert len(right) == 50 and np.mean(right) > 0.8
    page = tmp_path / "digits.html"
    exported = command("export", "--workdir", workdir, "--format", "html", "--out", page)
    assert exported.returncode == 0, exported.stderr
    assert "mydigits" in page.read_text()


def test_tfds_reads_it(trained: tuple[Path, Path], folder: Path) -> None:
    import tensorflow_datasets as tfds

    source = tfds.data_source("mydigits", data_dir=trained[0], split="train")
    builder = tfds.builder_from_directory(trained[0] / "mydigits" / "1.0.0")
    want = sorted(digits.read(file).tobytes() for file in folder.glob("[0-9]/[0-9]*.png"))
    both = [*source, *builder.as_data_source("test")]
    assert len(source) == 241 and sorted(example["image"].tobytes() for example in both) == want
    assert builder.info.features["label"].names == [*"0123456789"]
    split = datasets.open_dataset("mydigits", trained[0]).read("train")
    for index in (0, 1, 240):
        np.testing.assert_array_equal(source[index]["image"], split.images[index])
        assert source[index]["label"] == split.labels[index]
    assert len({*split.labels[:60].tolist()}) == 10  # TFDS has shuffled them, so that part of a split is a sample


def test_what_is_printed(folder: Path, run) -> None:
    made = run(folder, "--name", "mydigits", "--size", 32)
    assert made.code == 0, made.err
    assert made.err.splitlines() == [
        "warning: skipped 3/broken.png: is damaged (image file is truncated)",
        "warning: skipped 3/notes.txt: is not a PNG or JPEG picture",
        "warning: skipped empty: has no image",
    ]
    lines = made.out.splitlines()
    counts = {line.split()[0]: [int(cell) for cell in line.split()[1:]] for line in lines[5:15]}
    files = {name: len([*folder.glob(f"{name}/[0-9]*.png")]) for name in "0123456789"}
    assert {name: sum(pair) for name, pair in counts.items()} == files
    assert all(abs(test - 0.2 * (train + test)) <= 0.5 for train, test in counts.values())
    assert lines[15].split()[0] == "all" and "10 classes, images of 32 x 32 RGB" in lines[16]
    again = run(folder, "--name", "mydigits", "--size", 32)
    assert again.code == 0 and "is prepared already" in again.out
    listed = run()
    name, *_, checksum, disk, unit = listed.out.splitlines()[1].split()
    assert (
        "train 241, test 59" in listed.out
        and "32 x 32 RGB       10" in listed.out
        and (name, unit) == ("mydigits", "MB")
    )
    assert max(map(len, listed.out.splitlines())) < 80 and float(disk) > 0
    lines = b"".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}\n".encode()
        for file in sorted(folder.glob("[0-9]/*"))
    )
    assert checksum == hashlib.sha256(lines).hexdigest()[:8]
    [as_json] = [json.loads(line) for line in run("--json").out.splitlines()]
    assert as_json["examples"] == {"train": 241, "test": 59} and as_json["sha256"].startswith(checksum)


def arrays(channels: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    x_train, x_test = (rng.integers(0, 256, (n, 6, 5, *channels), np.uint8) for n in (20, 8))
    return {
        "x_train": x_train,
        "y_train": np.arange(20) % 4 + 7,
        "x_test": x_test,
        "y_test": np.arange(8)[:, None] % 4 + 7,
    }


def as_set(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels.ravel(), strict=True))


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_an_npz_file(channels: tuple[int, ...], run, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **(content := arrays(channels)))
    made = run(tmp_path / "own.npz", "--name", "mine", "--json")
    assert made.code == 0, made.err
    about = json.loads(made.out)
    assert about["sha256"] == {"own.npz": hashlib.sha256((tmp_path / "own.npz").read_bytes()).hexdigest()}
    assert about["examples"] == {
        "train": dict.fromkeys(["7", "8", "9", "10"], 5),
        "test": dict.fromkeys(["7", "8", "9", "10"], 2),
    }
    assert "already" in run(tmp_path / "own.npz", "--name", "mine", "--seed", 5).out  # which draws nothing here
    opened = datasets.open_dataset("mine", tmp_path / "data")
    assert opened.class_names == ("7", "8", "9", "10") and opened.image_shape == (6, 5, *(channels or (1,)))
    for split in ("train", "test"):
        images, labels = opened.read(split)
        assert as_set(images, labels + 7) == as_set(content[f"x_{split}"], content[f"y_{split}"])


@pytest.mark.parametrize("gz", [False, True])
def test_four_files_of_mnist(gz: bool, run, tmp_path: Path) -> None:
    content, source = arrays(), tmp_path / "idx"
    source.mkdir()
    for split, stem in (("train", "train"), ("test", "t10k")):
        for part, array in (("images-idx3", content[f"x_{split}"]), ("labels-idx1", content[f"y_{split}"].ravel())):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            raw = head + array.astype(np.uint8).tobytes()
            (source / f"{stem}-{part}-ubyte{'.gz' * gz}").write_bytes(gzip.compress(raw) if gz else raw)
    made = run(source, "--name", "mine", "--json")
    assert made.code == 0, made.err
    assert {*json.loads(made.out)["sha256"]} == {file.name for file in source.iterdir()}
    images, labels = datasets.open_dataset("mine", tmp_path / "data").read("test")
    assert as_set(images, labels + 7) == as_set(content["x_test"], content["y_test"])


def test_dark_digits_on_light_paper_get_a_hint(folder: Path, run) -> None:
    """`predict` makes every picture light on black, and a network that has seen the opposite would guess."""
    for flags in (["--size", 28, "--channels", 1], ["--like-mnist"]):
        made = run(folder, "--name", f"mine{len(flags)}", *flags)
        assert made.code == 0 and ("--like-mnist" in made.err) == ("--size" in flags)


def read_folder(folder: Path, **options: object) -> own_images.OwnImages:
    return own_images.read(folder, sources.find(folder, no_track), own_images.Options(**options), no_track)  # type: ignore


def test_folders_of_train_and_test_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "1", tmp_path / "train" / "one")
    shutil.copytree(folder / "2", tmp_path / "train" / "two")
    shutil.copytree(folder / "1", tmp_path / "test" / "one")
    (tmp_path / "README").touch()
    own = read_folder(tmp_path, size=10, channels=1)
    assert own.class_names == ["one", "two"] and own.skipped == [("README", "is neither train nor test")]
    ones = len([*(folder / "1").iterdir()])
    assert own.splits["test"].labels.tolist() == [0] * ones and own.splits["train"].labels[ones:].all()
    assert own.splits["train"].images.shape[1:] == (10, 10, 1)


def test_the_draw_depends_on_its_seed_alone() -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 2, 10, 100])
    drawn = [own_images.draw_test(labels, 0.2, seed) for seed in (0, 0, 1)]
    assert np.bincount(labels[drawn[0]], minlength=4).tolist() == [0, 1, 2, 20]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert np.bincount(labels[own_images.draw_test(labels, 0.999, 0)], minlength=4).tolist() == [0, 1, 9, 99]


def test_resizing_keeps_proportions_and_colours() -> None:
    picture = Image.new("RGB", (40, 20), (200, 100, 50))
    picture.paste((0, 0, 0), (10, 5, 30, 15))
    square = np.asarray(pictures.fit(picture, 20))
    assert (
        square.shape == (20, 20, 3) and (square[:5] == (200, 100, 50)).all() and (square[15:] == (200, 100, 50)).all()
    )
    assert (square[9:11, 6:14] == 0).all() and pictures.fit(picture, 40).size == (40, 40)
    assert pictures.fit(Image.new("L", (900, 1)), 4).size == (4, 4)
    assert pictures.fit(same := Image.new("L", (7, 7)), 7) is same
    assert pictures.is_grey(Image.new("RGB", (3, 3), (9, 9, 9))) and not pictures.is_grey(picture)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_killed_in_the_middle_it_leaves_no_dataset(signum: int, tmp_path: Path, command: Command) -> None:
    many = {
        f"{k}_{split}": np.zeros((20_000, 8, 8) if k == "x" else 20_000, np.uint8)
        for k in "xy"
        for split in sources.SPLITS
    }
    for split in sources.SPLITS:
        many[f"y_{split}"][::2] = 1
    np.savez(tmp_path / "many.npz", **many)
    line = [tmp_path / "many.npz", "--name", "mine", "--data-dir", tmp_path / "data"]
    process = subprocess.Popen([sys.executable, "-m", "mnist_flax.data", *map(str, line)], stderr=subprocess.PIPE)
    while not list((tmp_path / "data").glob(".saving-mine/tfds/mine/*incomplete*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    _, stderr = process.communicate()
    if signum == signal.SIGTERM:
        assert process.returncode == 143 and stderr == b"stopped by SIGTERM: mine was not written\n"
        assert [path.name for path in (tmp_path / "data").iterdir()] == [".mnist_flax.lock"]
    assert "Nothing is prepared" in command("data", "--data-dir", tmp_path / "data").stdout
    np.savez(tmp_path / "few.npz", **{key: array[:10] for key, array in many.items()})
    assert command("data", tmp_path / "few.npz", "--name", "other", *line[3:]).returncode == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".mnist_flax.lock", "other"]


MISTAKES = {
    "--name mine": "source=None is missing",
    "PICTURES": "name=None is missing; give .* --name mydigits",
    "PICTURES --name Mine": "name='Mine' is not a name",
    "PICTURES --name ../mine": "is not a name",
    "PICTURES --name emnist/mine": "is not a name",
    "PICTURES --name kmnist": "name='kmnist' is the name of a dataset of TFDS; choose another --name, such as my_k",
    "PICTURES --name cifar10": "is the name of a dataset of TFDS",
    "PICTURES --name taken --size 28": "name='taken' is taken: .*; choose another --name, or remove",
    "PICTURES --name mine": r"size=None needs images of one size, and they differ \(0/.* --size 28",
    "PICTURES --name mine --size 0": "size=0 is out of range",
    "PICTURES --name mine --size 9999": "size=9999 is out of range",
    "PICTURES --name mine --channels 2": "--channels",
    "PICTURES --name mine --size 28 --test-share 1": "test_share=1.0 is out of range",
    "PICTURES --name mine --size 28 --test-share nan": "test_share=nan is out of range",
    "PICTURES --name mine --size 28 --seed -1": "seed=-1 is out of range",
    "PICTURES --name mine --like-mnist --size 32": "like_mnist=True makes grey images of 28 x 28",
    "NOTHING --name mine": "source='.*' is not a file or a folder; give a folder of class folders",
    "EMPTY --name mine": "has fewer than two classes with images; add PNG or JPEG",
    "LONELY --name mine": r"has fewer than two classes with images \(skipped 2: b/a.png is empty, ...\)",
    "HALF --name mine": "has train without test; add it, or give",
    "APART --name mine": "has images of class 'b' for test only",
    "CONTROL --name mine": r"has a class 'a\\x1b\[2J'",
    "IDX --name mine": "lacks train-images-idx3-ubyte.gz, t10k",
    "LABELS --name mine": "train-images-idx3-ubyte' is damaged",
    "TEXT --name mine": "is not an .npz of plain arrays",
    "PICKLE.npz --name mine": "is not an .npz of plain arrays .*allow_pickle",
    "KEYS.npz --name mine": "lacks y_train, x_test, y_test",
    "FLOAT.npz --name mine": "has train images float64",
    "SHORT.npz --name mine": r"has train labels int64 \[19\]; give whole numbers \[20\]",
}


@pytest.fixture
def wrong_places(tmp_path: Path, folder: Path) -> Path:
    """What the mistakes name."""
    (tmp_path / "PICTURES").symlink_to(folder)
    small = Image.new("L", (4, 4))
    for name in ("LONELY/a", "LONELY/b", "HALF/train/a", "HALF/train/b", "CONTROL/a\x1b[2J", "CONTROL/b",
                 "APART/train/a", "APART/train/c", "APART/test/b", "IDX", "LABELS", "EMPTY"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        if "/" in name:
            small.save(tmp_path / name / "a.png")
    (tmp_path / "LONELY" / "b" / "a.png").write_bytes(b"")
    (tmp_path / "TEXT").write_text("hello")
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "LABELS" / f"{part}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09123")
    (tmp_path / "IDX" / "train-labels-idx1-ubyte").write_bytes(b"")
    content = arrays()
    np.savez(tmp_path / "PICKLE.npz", **content | {"y_train": np.array([{}] * 20)})
    np.savez(tmp_path / "KEYS.npz", x_train=content["x_train"])
    np.savez(tmp_path / "FLOAT.npz", **content | {"x_train": content["x_train"] / 255})
    np.savez(tmp_path / "SHORT.npz", **content | {"y_train": content["y_train"][1:]})
    (tmp_path / "data" / "taken").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("line", MISTAKES)
def test_each_mistake_is_one_line(line: str, wrong_places: Path, run) -> None:
    before = {path: path.read_bytes() if path.is_file() else None for path in wrong_places.rglob("*")}
    words = [str(wrong_places / word) if re.match("[A-Z]{2}", word) else word for word in line.split()]
    result = run(*words)
    assert result.code == 2, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and "\x1b" not in result.err
    assert re.search(MISTAKES[line], result.err), result.err
    assert before == {path: path.read_bytes() if path.is_file() else None for path in wrong_places.rglob("*")}


def test_a_data_directory_that_cannot_be_written_is_named(run, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays())
    (tmp_path / "data").write_text("")
    result = run(tmp_path / "own.npz", "--name", "mine")
    assert result.code == 2 and "data_dir=" in result.err and "give another --data-dir" in result.err


@pytest.mark.parametrize("content", [b"\0\0\x08", b"\0\0\x08\x03", b""])
def test_a_cut_idx_file_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"not an IDX|buffer|size"):
        sources.read_idx(tmp_path / "x")


def test_a_single_array_is_no_dataset(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 28, 28), np.uint8))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(InputError):
        sources.find(tmp_path / "x.npz", no_track)
