"""A recipe of ours as a plain PyTorch loop with fused Adam, on the same files: one seed, one JSON line.

    python experiments/benchmarks/peers/recipe_pytorch.py experiments/recipes/98.json --seed 0

Needs the bench extra. Of a recipe it takes the settings that `recipe_files.settings` allows.
"""

import argparse
import json
import time

import torch
from files import read
from recipe_files import learning_rates, settings
from torch import nn


def main() -> None:
    """Train and print the test accuracy at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe, h = settings(args.recipe)
    torch.manual_seed(args.seed)
    layers: list[nn.Module] = []
    inputs = 784
    for layer, width in enumerate(recipe["widths"], start=1):
        layers.append(nn.Linear(inputs, width))
        layers += [nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)] * (layer in recipe["batch_norm_layers"])
        layers += [nn.ReLU(), nn.Dropout(h["dropout_rate"])]
        inputs = width
    model = nn.Sequential(*layers, nn.Linear(inputs, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    images, labels = (torch.from_numpy(array[: recipe["train"]]) for array in read("train"))
    rates = iter(learning_rates(recipe, h, len(labels)))
    adam = torch.optim.Adam(model.parameters(), betas=(h["b1"], h["b2"]), eps=recipe["adam_epsilon"], fused=True)
    began = time.perf_counter()
    for _ in range(recipe["epochs"]):
        for batch in torch.randperm(len(labels)).split(recipe["batch_size"]):
            adam.param_groups[0]["lr"] = next(rates)
            logits = model(images[batch])
            loss = nn.functional.cross_entropy(logits, labels[batch], label_smoothing=h["label_smoothing"])
            adam.zero_grad()
            loss.backward()
            adam.step()
    seconds = round(time.perf_counter() - began, 4)
    model.eval()
    test, truth = map(torch.from_numpy, read("t10k"))
    with torch.no_grad():
        guesses = torch.cat([model(x).argmax(1) for x in test.split(1000)])
    versions = {"torch": torch.__version__}
    print(
        json.dumps({"accuracy": float((guesses == truth).double().mean()), "training": seconds, "versions": versions})
    )


if __name__ == "__main__":
    main()
