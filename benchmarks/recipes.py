"""Which training gives a 2-bit network the maps of fp32? ``python -m benchmarks.recipes --seeds 0 1``.

Tries recipes for "cnn" at w2a2 on 8,000 training images of FashionMNIST-mini and judges them on the 2,000 others; no
test image is used. Prints accuracy, the gains of the gradient map over the random map, and its share on the object.
About a minute a recipe and seed on one core.
"""

import argparse
import dataclasses

import torch
from torch import nn
from tqdm import tqdm

from qsal_helpers import Distilled, SaliencyGuided, build_model, evaluate, fit, load_data, metrics, quantize
from qsal_helpers.data import ImageData
from qsal_helpers.saliency import saliency_map
from qsal_helpers.training import Objective, cross_entropy


def held_out() -> ImageData:
    """Return FashionMNIST-mini with its last 2,000 training images in the place of the test images."""
    data = load_data("fashion-mnist")
    return dataclasses.replace(data, train=data.train[:8000], test=data.train[8000:])


def train(
    data: ImageData, precision: str, objective: Objective, seed: int, start: nn.Module | None = None, epochs: int = 8
) -> nn.Module:
    """Return a trained network; its first weights are random, or those of `start`."""
    torch.manual_seed(seed)
    model = build_model("cnn")
    if start is not None:
        model.load_state_dict(start.state_dict())
    model = quantize(model, precision)
    fit(model, data, objective, epochs=epochs, seed=seed, progress=False)
    return model.eval()


def judge(model: nn.Module, data: ImageData, images: int = 500) -> list[float]:
    """Return accuracy, deletion and insertion gain with black and with blur, and the share on the object."""
    images = data.test.images[:images]
    x = data.normalise(images)
    with torch.inference_mode():
        target = model(x).argmax(1)
    own, chance = (saliency_map(model, x, target, method) for method in ("gradient", "random"))
    found = [evaluate(model, data)]
    for fill in (data.normalise(torch.zeros_like(images[:1]))[0, :, 0, 0].tolist(), "blur"):
        deleted, inserted = (
            [area(model, x, m, target, fill=fill).mean().item() for m in (own, chance)]
            for area in (metrics.deletion_auc, metrics.insertion_auc)
        )
        found += [deleted[1] - deleted[0], inserted[0] - inserted[1]]
    return [*found, metrics.foreground_mass(own, metrics.object_mask(images)).mean().item()]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Recipes for 2-bit networks, judged on held-out training images.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    data, rows = held_out(), {}
    seeds = parser.parse_args().seeds
    for seed in tqdm(seeds, unit="seed"):
        twin = train(data, "fp32", cross_entropy, seed)
        recipes = {
            "plain": (cross_entropy, None),
            "ratio 0.5": (SaliencyGuided(), None),
            "ratio 0.75": (SaliencyGuided(0.75), None),
            "ratio 0.75, filled with black": (SaliencyGuided(0.75, fill="black"), None),
            "ratio 0.75, taught by the twin": (Distilled(twin, SaliencyGuided(0.75)), None),
            "taught by the twin": (Distilled(twin), None),
            "started from the twin": (cross_entropy, twin),
            "started from the twin and taught by it": (Distilled(twin), twin),
            "the same, ratio 0.5": (Distilled(twin, SaliencyGuided()), twin),
            "plain, 16 epochs": (cross_entropy, None, 16),
            "taught by the twin, 16 epochs": (Distilled(twin), None, 16),
            "started from the twin and taught by it, 16 epochs": (Distilled(twin), twin, 16),
        }
        rows.setdefault("fp32, plain: the twin", []).append(judge(twin, data))
        for name, (objective, *options) in tqdm(recipes.items(), unit="recipe", leave=False):
            rows.setdefault(f"w2a2, {name}", []).append(judge(train(data, "w2a2", objective, seed, *options), data))
    columns = ["accuracy", "deletion, black", "insertion, black", "deletion, blur", "insertion, blur", "on object"]
    print(
        f"| recipe (seeds {', '.join(map(str, seeds))}) | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns)
    )
    for name, values in rows.items():
        means = torch.tensor(values).mean(0).tolist()
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
