"""The data is MNIST, whole, in TFDS's order; it survives damage and kills."""

import gzip
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import alarm
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnist_flax.data import batches, datasets, prepare
from mnist_flax.errors import InputError
from mnist_flax.process import files

# `tfds.load("mnist", shuffle_files=False)` under TensorFlow 2.21 and TFDS 4.9.10, from TFDS's own builder.
STOCK_SHA256 = {
    "train": (
        "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b",
        "062bf4d1a71dfc825d91f86658f9e3f8d6f35b8805a2457550c5000b0b1ff96c",
    ),
    "test": (
        "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca",
        "58b236bac2b9f39e838e65b8a6942832a40044c1da3df14e20f2f8291c6af177",
    ),
}
EMBEDDED = Path(datasets.__file__).parent / "mnist"


def prepare_in_a_process(data_dir: Path) -> subprocess.Popen:
    code = "from pathlib import Path; from mnist_flax.data.datasets import open_dataset; "
    code += f"open_dataset('mnist', Path({str(data_dir)!r}))"
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose first preparation was killed in the middle, and whose second was let through."""
    data_dir = tmp_path_factory.mktemp("data")
    first = prepare_in_a_process(data_dir)
    while not list((data_dir / "mnist").glob("*incomplete*/*")):
        assert first.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert prepare_in_a_process(data_dir).wait() == 0
    assert not list((data_dir / "mnist").glob("*incomplete*"))
    return data_dir


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_and_order_are_those_of_tfds(prepared: Path, split: str) -> None:
    images, labels = datasets.open_dataset("mnist", prepared).read(split)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    sums = tuple(hashlib.sha256(a.tobytes()).hexdigest() for a in (images, labels.astype("<i4")))
    assert sums == STOCK_SHA256[split]


@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("test", "t10k")])
def test_examples_are_those_of_the_canonical_files(dataset: datasets.Dataset, split: str, stem: str) -> None:
    """As multisets of (image, label), by way of sorted digests."""
    read = lambda part: gzip.decompress((EMBEDDED / f"{stem}-{part}-ubyte.gz").read_bytes())  # noqa: E731
    want = np.frombuffer(read("images-idx3"), np.uint8, offset=16).reshape(-1, 784)
    labels = np.frombuffer(read("labels-idx1"), np.uint8, offset=8)
    got = dataset.read(split)
    assert digests(got.images.reshape(-1, 784), got.labels) == digests(want, labels)


def digests(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return sorted(hashlib.md5(i.tobytes() + bytes([n])).digest() for i, n in zip(images, labels, strict=True))


def test_the_prepared_dataset_is_tfds_own(prepared: Path) -> None:
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", data_dir=prepared, split="test", builder_kwargs={"file_format": "array_record"})
    split = datasets.open_dataset("mnist", prepared).read("test")
    assert len(source) == 10_000
    for index in (0, 1, 9_999):
        np.testing.assert_array_equal(source[index]["image"], split.images[index])
        assert source[index]["label"] == split.labels[index]


def test_opening_again_needs_no_tfds(prepared: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from mnist_flax.data import datasets
datasets.open_dataset("mnist", Path({str(prepared)!r})).read("train")
assert "tensorflow_datasets" not in sys.modules and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("split", "want"),
    [
        ("train[:500]", slice(0, 500)),
        ("train[59990:]", slice(59990, 60000)),
        ("train[-1%:]", slice(59400, 60000)),
        ("train[50%:51%]", slice(30000, 30600)),
    ],
)
def test_split_strings(dataset: datasets.Dataset, split: str, want: slice) -> None:
    whole, part = dataset.read("train"), dataset.read(split)
    np.testing.assert_array_equal(part.labels, whole.labels[want])
    np.testing.assert_array_equal(part.images[-1], whole.images[want][-1])


def test_joined_splits(dataset: datasets.Dataset) -> None:
    images, labels = dataset.read("test[:2]+train[:3]")
    np.testing.assert_array_equal(labels, np.r_[dataset.read("test").labels[:2], dataset.read("train").labels[:3]])
    assert images.shape == (5, 28, 28, 1)


@pytest.mark.parametrize("split", ["validation", "train[", "train[5:5]", "train[70000:]", "test[:-20000]"])
def test_wrong_splits(dataset: datasets.Dataset, split: str) -> None:
    with pytest.raises(InputError, match="split="):
        dataset.read(split)


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(n: int, batch_size: int, seed: int, epoch: int) -> None:
    rows = batches.epoch_batches(n, batch_size, seed, epoch)
    assert rows.shape == (-(-n // batch_size), batch_size) and rows.dtype == np.int32
    flat = rows.ravel()
    assert sorted(flat[:n]) == list(range(n)) and (flat[n:] == -1).all()
    np.testing.assert_array_equal(rows, batches.epoch_batches(n, batch_size, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    orders = {batches.epoch_batches(100, 10, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A data directory with a small dataset of colour images that TFDS itself has prepared."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(3, 4, 3)),
                    "label": tfds.features.ClassLabel(names=["a", "b"]),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(5):
                    yield i, {"image": Image.fromarray(np.full((3, 4, 3), i, np.uint8)), "label": i % 2}

    Shapes(data_dir=tmp_path, file_format="array_record").download_and_prepare(file_format="array_record")
    return tmp_path


def test_any_prepared_dataset_works_by_name(shapes: Path) -> None:
    dataset = datasets.open_dataset("shapes", shapes)
    assert dataset.image_shape == (3, 4, 3) and dataset.class_names == ("a", "b") and dataset.examples == {"train": 5}
    images, labels = dataset.read("train")
    assert sorted(zip(images[:, 0, 0, 0], labels, strict=True)) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert datasets.open_dataset("shapes:1.0.0", shapes).examples == {"train": 5}


def test_tfds_own_tfrecord_copy_works(shapes: Path) -> None:
    want = datasets.open_dataset("shapes", shapes).read("train")
    to_tfrecord(shapes / "shapes" / "1.0.0")
    got = datasets.open_dataset("shapes", shapes).read("train")
    np.testing.assert_array_equal(got.images, want.images)
    np.testing.assert_array_equal(got.labels, want.labels)


@pytest.mark.parametrize("damage", ["one record less", "one bit flipped", "half a record less"])
def test_a_damaged_tfrecord_copy_is_named(shapes: Path, damage: str) -> None:
    directory = shapes / "shapes" / "1.0.0"
    datasets.open_dataset("shapes", shapes)
    to_tfrecord(directory)
    (file,) = directory.glob("*.tfrecord*")
    content = bytearray(file.read_bytes())
    if damage == "one record less":
        content = content[: len(content) * 4 // 5]
    elif damage == "one bit flipped":
        content[40] ^= 1
    else:
        content = content[:-30]
    file.write_bytes(content)
    with pytest.raises(InputError, match="1.0.0 is damaged: delete it"):
        datasets.open_dataset("shapes", shapes)
    assert not (directory / "decoded").exists()


def example(image: bytes, label: int) -> bytes:
    """A TFDS example as protobuf."""
    proto = importlib.import_module("tensorflow_datasets.proto").tf_example_pb2
    record = proto.Example()
    record.features.feature["image"].bytes_list.value.append(image)
    record.features.feature["label"].int64_list.value.append(label)
    return record.SerializeToString()


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


SOUND = png(np.zeros((3, 4, 3), np.uint8))
ODD_RECORDS = {
    "no example": b"\xff\xff\xff",
    "no image": example(b"", 0),
    "half an image": example(SOUND[:45], 0),
    "an image of another size": example(png(np.zeros((4, 3, 3), np.uint8)), 0),
    "a bomb": example(png(np.zeros((14_000, 14_000), np.uint8)), 0),
    "another kind of image": example(png(np.zeros((3, 4, 3), np.uint8), "PPM"), 0),
    "a huge label": example(SOUND, 2**40),
}


@pytest.mark.parametrize("what", [*ODD_RECORDS, "a huge length", "half a length"])
def test_odd_records_with_right_checksums_are_named(shapes: Path, what: str) -> None:
    from tensorboardX.record_writer import masked_crc32c

    datasets.open_dataset("shapes", shapes)
    to_tfrecord(directory := shapes / "shapes" / "1.0.0")
    (file,) = directory.glob("*.tfrecord*")
    record = ODD_RECORDS.get(what, example(SOUND, 0))
    header = struct.pack("<Q", 2**62 if what == "a huge length" else len(record))
    content = header + struct.pack("<I", masked_crc32c(header)) + record + struct.pack("<I", masked_crc32c(record))
    file.write_bytes(file.read_bytes() + content[: 5 if what == "half a length" else None])
    text = (directory / "dataset_info.json").read_text()
    (directory / "dataset_info.json").write_text(text.replace('"5"', '"6"'))
    with pytest.raises(InputError, match="1.0.0 is damaged: delete it"):
        datasets.open_dataset("shapes", shapes)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dataset_info.json", "{", "{half", "dataset='shapes' is damaged in"),
        ("dataset_info.json", '"5"', "[]", "dataset='shapes' is damaged in"),
        ("dataset_info.json", '"5"', f'"{10**15}"', "more than fit into memory; choose another --dataset"),
        ("features.json", "image_feature.Image", "Image", "dataset='shapes' is damaged in"),
        ("features.json", '"featuresDict"', '"other"', "dataset='shapes'"),
        ("label.labels.txt", "b", "b\x1b[2J", r"dataset='shapes' has a class 'b\\x1b\[2J'"),
    ],
)
def test_odd_descriptions_are_named(shapes: Path, name: str, old: str, new: str, message: str) -> None:
    file = shapes / "shapes" / "1.0.0" / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        datasets.open_dataset("shapes", shapes)


@pytest.mark.parametrize("old", ["tensorflow_datasets.core.features.image_feature.Image", "TFDS 4.0"])
def test_no_module_that_a_dataset_names_is_imported(
    old: str, shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "payload.py").write_text("import pathlib\npathlib.Path(__file__).with_name('run').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = shapes / "shapes" / "1.0.0" / "features.json"
    text = file.read_text()
    legacy = '{"type": "payload.Image", "content": {}}'
    file.write_text(legacy if old == "TFDS 4.0" else text.replace(old, "payload.Image"))
    with pytest.raises(InputError, match="features.json names 'payload.Image', which is not TFDS's own"):
        datasets.open_dataset("shapes", shapes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "label.labels.txt", "../.config/metadata.json"])
@pytest.mark.parametrize("what", ["pipe", "gigabytes"])
def test_no_description_of_a_dataset_is_read_without_an_end(shapes: Path, name: str, what: str) -> None:
    file = shapes / "shapes" / "1.0.0" / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(file)
    else:
        file.touch()
        os.truncate(file, 2**34)  # takes no space
    with alarm(20), pytest.raises(InputError, match="is damaged in .*(is a pipe or a device|oo large)"):
        datasets.open_dataset("shapes", shapes)


@pytest.mark.parametrize(
    "change",
    [
        {"examples": 7},
        {"examples": {"train": 0.5}},
        {"examples": {"train": -1}},
        {"image_shape": None},
        {"class_names": "ab"},
        {"class_names": ["a", "\x1b[2J"]},
        {"sha256": {"/dev/zero": ""}},
        {"sha256": []},
        {},
    ],
)
def test_an_odd_description_of_a_decoded_copy_is_made_again(shapes: Path, change: dict) -> None:
    want = datasets.open_dataset("shapes", shapes)
    spec = shapes / "shapes" / "1.0.0" / "decoded" / "spec.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | change) if change else "[]")
    with alarm(10):
        assert datasets.open_dataset("shapes", shapes) == want


@pytest.mark.parametrize(("old", "new"), [('"train": 5', '"train": 1'), ('"b"', '"c"')])
def test_a_bit_flipped_in_the_description_of_a_decoded_copy_is_noticed(shapes: Path, old: str, new: str) -> None:
    want = datasets.open_dataset("shapes", shapes)
    spec = shapes / "shapes" / "1.0.0" / "decoded" / "spec.json"
    assert old in spec.read_text()
    spec.write_text(spec.read_text().replace(old, new))
    assert datasets.open_dataset("shapes", shapes) == want


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 3, 4, 3), np.uint8),
        np.zeros((5, 4, 3, 3), np.uint8),
        np.zeros((5, 3, 4, 3), np.float64),
        np.array([None] * 5),
        None,
    ],
)
def test_arrays_that_a_description_does_not_fit_are_made_again(shapes: Path, array: np.ndarray | None) -> None:
    """Although their sums do: somebody else has made both. An older version's description has no sum of its own."""
    want = datasets.open_dataset("shapes", shapes)
    decoded = shapes / "shapes" / "1.0.0" / "decoded"
    (decoded / "train-images.npy").write_bytes(b"")
    if array is not None:
        np.save(decoded / "train-images.npy", array)
    spec = json.loads((decoded / "spec.json").read_text())
    del spec["spec_sha256"]
    spec["sha256"]["train-images.npy"] = files.sha256(decoded / "train-images.npy")
    (decoded / "spec.json").write_text(json.dumps(spec))
    assert datasets.open_dataset("shapes", shapes) == want


def test_a_header_that_numpy_cannot_read_is_made_again(shapes: Path) -> None:
    want = datasets.open_dataset("shapes", shapes)
    decoded = shapes / "shapes" / "1.0.0" / "decoded"
    (decoded / "train-images.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ('|u1'")
    assert datasets.open_dataset("shapes", shapes) == want


def test_a_sum_needs_no_memory_for_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**28)  # takes no space
    code = f"""
import resource
from pathlib import Path
from mnist_flax.process import files
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
print(files.sha256(Path({str(tmp_path / "large")!r})))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashlib.sha256(bytes(2**28)).hexdigest()


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "spec"])
def test_a_damaged_decoded_copy_is_made_again(shapes: Path, damage: str) -> None:
    """Every bit is checked on every start."""
    want = np.array(datasets.open_dataset("shapes", shapes).read("train").images)
    decoded = shapes / "shapes" / "1.0.0" / "decoded"
    victim = decoded / "train-images.npy"
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-7] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        os.truncate(victim, 100)
    elif damage == "delete":
        victim.unlink()
    else:
        (decoded / "spec.json").write_text("{}")
    made = []
    dataset = datasets.open_dataset("shapes", shapes, track=lambda items, *_: made.append(1) or items)
    np.testing.assert_array_equal(dataset.read("train").images, want)
    assert made


def to_tfrecord(directory: Path) -> None:
    """Turn a prepared dataset into TFDS's TFRecord form, which TFDS itself can write with TensorFlow only."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorboardX.record_writer import RecordWriter

    shutil.rmtree(directory / "decoded")
    (file,) = directory.glob("*.array_record*")
    records = ArrayRecordDataSource([str(file)]).__getitems__(range(5))
    out = RecordWriter(str(file).replace("array_record", "tfrecord"))
    for record in records:
        out.write(record)
    out.close()
    file.unlink()
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def test_damaged_or_foreign_files_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    manual = tmp_path / "manual"
    shutil.copytree(EMBEDDED, manual)
    content = bytearray((manual / "train-labels-idx1-ubyte.gz").read_bytes())
    content[100] ^= 1
    (manual / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match="train-labels-idx1-ubyte.gz is damaged or not of mnist"):
        datasets.open_dataset("mnist", tmp_path / "data", manual)
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte.gz is damaged or not of kmnist"):
        datasets.open_dataset("kmnist", tmp_path / "data", manual)
    with pytest.raises(InputError, match="lacks t10k-images"):
        datasets.open_dataset("fashion_mnist", tmp_path / "data", tmp_path)
    with pytest.raises(InputError, match="is damaged or not of mnist"):  # though it is not needed any more
        datasets.open_dataset("mnist", datasets.default_data_dir(), manual)
    with pytest.raises(InputError, match="'cifar10' is not prepared"):
        datasets.open_dataset("cifar10", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_embedded_files_are_canonical() -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=EMBEDDED, check=True)
    prepare.check_sources("mnist", None)


def test_a_copy_in_the_cache_is_not_that_of_another_dataset_in_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    first = datasets._decoded_dirs(tmp_path)
    assert datasets._decoded_dirs(tmp_path) == first
    (tmp_path / "train.array_record").write_bytes(b"other")
    beside, elsewhere = datasets._decoded_dirs(tmp_path)
    assert beside == first[0] and elsewhere != first[1]
