"""The tutorial's network in PyTorch on a GPU, each step one replay of a CUDA graph: one JSON line.

    python experiments/benchmarks/peers/pytorch_cuda_graph.py --precision tf32

The files, the order of examples and the weights are on the GPU; fused Adam is in the graph. Needs PyTorch for CUDA.
"""

import argparse
import json
import time

import torch
from files import read
from torch import nn

BATCH = 128


def network() -> tuple[nn.Sequential, nn.Linear]:
    """The tutorial's network, and the layer that the L2 term penalizes."""
    penalized = nn.Linear(512, 512)
    normalized = nn.BatchNorm1d(512, eps=1e-3, momentum=0.01)  # Keras's 0.99
    first, last = nn.Linear(784, 512), nn.Linear(512, 10)
    for layer in (first, penalized, last):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    hidden = (first, nn.ReLU(), nn.Dropout(0.2), penalized, normalized, nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(*hidden, last).cuda(), penalized


def main() -> None:
    """Train, timing each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = (
        (torch.from_numpy(x).cuda(), torch.from_numpy(y).cuda()) for x, y in map(read, ("train", "t10k"))
    )
    model, penalized = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7, fused=True, capturable=True)
    indices = torch.zeros(BATCH, dtype=torch.int64, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=args.precision == "bfloat16", cache_enabled=False):
            logits = model(images[indices])
        loss = nn.functional.cross_entropy(logits.float(), labels[indices]) + 0.001 * penalized.weight.square().sum()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is allocated once
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    seconds = []
    for _ in range(args.epochs):
        order = torch.randperm(len(labels), device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        for batch in order.split(BATCH)[:-1]:  # the graph has one size; 96 examples of 60,000 wait for their turn
            indices.copy_(batch)
            graph.replay()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    model.eval()
    with torch.no_grad():
        accuracy = float((model(test_images).argmax(1) == test_labels).float().mean())
    steps, memory = len(labels) // BATCH, torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"steps": steps, "epoch_seconds": seconds, "accuracy": accuracy, "peak_memory_mb": memory}))


if __name__ == "__main__":
    main()
