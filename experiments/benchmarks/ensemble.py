"""What does the mean of ten networks gain, and does its ONNX file predict the same?

The ten networks that the study regularization.py tests last: its chosen configuration, ten new seeds, trained on all of
train. The file is read by onnxruntime.

    python experiments/benchmarks/ensemble.py            # 7 minutes on 2 cores; needs the export extra
    python experiments/benchmarks/ensemble.py --table    # only the table, from results/ensemble.jsonl
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import searches
from provenance import RESULTS, as_markdown, load_results, save_results

LINES, TABLE = RESULTS / "ensemble.jsonl", RESULTS / "ensemble.md"
NETWORKS = 10
SCORES = ("examples", "correct", "accuracy", "accuracy_interval", "cross_entropy", "expected_calibration_error")
STUDY = """
from mnist_flax import Config

BASE = Config(epochs=20, train_split="train[:50000]", eval_split="train[50000:]")


def sweep():
    yield {"batch_norm_layers": (2,), "dropout_rate": 0.2, "l2": 0.0, "seed": 0}
"""


def measure() -> Iterator[dict[str, Any]]:
    """The networks, their ensemble, and the file."""
    with tempfile.TemporaryDirectory() as directory:
        searches.sweep(STUDY, Path(directory))
        which = "--workdir", f"{directory}/sweep", "--ensemble", NETWORKS
        report = json.loads(searches.run("evaluate", *which, "--no-figures", "--json"))
        file = Path(directory, "ensemble.onnx")
        searches.run("export", *which, "--format", "onnx", "--out", file)
        yield {name: report[name] for name in (*SCORES, "networks")} | against_onnxruntime(
            Path(directory, "sweep"), file
        )


def against_onnxruntime(sweep: Path, file: Path) -> dict[str, Any]:
    """The file's probabilities of the test split next to the mean of the networks'."""
    import numpy as np
    import onnxruntime

    from mnist_flax import inference, metrics

    _, networks = inference.load_ensemble(sweep, NETWORKS, None)
    images, _ = inference.find_dataset(networks[0].run, None).read("test")
    each = inference.logits_of_each([(network.model, network.variables) for network in networks], images, 1000)
    want = np.exp(metrics.log_mean_softmax(each))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [got] = map(np.asarray, session.run(["probabilities"], {"images": images}))
    return {
        "onnx_bytes": file.stat().st_size,
        "largest_difference": float(np.abs(got - want).max()),
        "same_digit": int((got.argmax(axis=1) == want.argmax(axis=1)).sum()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The ensemble next to its networks."""
    about, row = rows
    networks = row["networks"]
    mean = {name: statistics.mean(network[name] for network in networks) for name in SCORES if name != SCORES[3]}
    low, high = (f"{100 * end(network['accuracy'] for network in networks):.2f} %" for end in (min, max))
    lines = [
        "| ten networks | test accuracy | 95 % interval | cross-entropy | calibration error |",
        "|---|---|---|---|---|",
    ]
    for name, scores, interval in (
        ("one, on average", mean, f"the networks: {low} to {high}"),
        ("the mean of their probabilities", row, None),
    ):
        shown = interval or " to ".join(f"{100 * end:.2f} %" for end in scores["accuracy_interval"])
        numbers = f"{scores['cross_entropy']:.4f} | {scores['expected_calibration_error']:.4f}"
        lines.append(f"| {name} | {100 * scores['accuracy']:.2f} % | {shown} | {numbers} |")
    lines += [
        "",
        f"Their ONNX file ({row['onnx_bytes'] / 1e6:.1f} MB) in onnxruntime: probabilities at most "
        f"{row['largest_difference']:.0e} apart, the same digit for {row['same_digit']:,} of {row['examples']:,}.",
        "",
        f"{as_markdown(about)}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table")
    if not parser.parse_args().table:
        save_results(LINES, measure())
    TABLE.write_text(table(load_results(LINES)))
    print(TABLE.read_text())
