"""The tutorial's network as a plain PyTorch loop with fused Adam, on the same files: one seed, one JSON line.

    python experiments/benchmarks/peers/pytorch_loop.py --seed 0

Needs the bench extra.
"""

import argparse
import json
import time

import torch
from files import read
from torch import nn


def main() -> None:
    """Train and print the test accuracy after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    (images, labels), (test_images, test_labels) = (
        (torch.from_numpy(x), torch.from_numpy(y)) for x, y in map(read, ("train", "t10k"))
    )
    penalized = nn.Linear(512, 512)
    model = nn.Sequential(
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Dropout(0.2),
        penalized,
        nn.BatchNorm1d(512, eps=1e-3, momentum=0.01),  # Keras's 0.99
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(512, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True)

    seconds, accuracy = [], []
    for _ in range(args.epochs):
        began = time.perf_counter()
        model.train()
        for batch in torch.randperm(len(labels)).split(128):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss = loss + 0.001 * penalized.weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(round(time.perf_counter() - began, 4))
        model.eval()
        with torch.no_grad():
            hits = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(test_images.split(1000), test_labels.split(1000), strict=True)
            )
        accuracy.append(hits / len(test_labels))
    result = {
        "program": "pytorch-fused",
        "seed": args.seed,
        "accuracy": accuracy,
        "epoch_seconds": seconds,
        "versions": {"torch": torch.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
