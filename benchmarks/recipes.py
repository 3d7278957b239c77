"""Which training gives a 2-bit network the maps of fp32? ``python -m benchmarks.recipes --seeds 0 1``.

Tries recipes for "cnn" at w2a2 on 8,000 training images of FashionMNIST-mini and judges them on the 2,000 others; no
test image is used. Prints accuracy, the gains of the gradient map over the random map, and its share on the object.
About a minute a recipe and seed on one core.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from qsal_helpers import SaliencyGuided, build_model, evaluate, fit, load_data, metrics, quantize
from qsal_helpers.data import ImageData
from qsal_helpers.saliency import saliency_map
from qsal_helpers.training import Objective, cross_entropy

TEMPERATURE = 4.0  # of the distillation (Hinton et al. 2015), our choice


def held_out() -> ImageData:
    """Return FashionMNIST-mini with its last 2,000 training images in the place of the test images."""
    data = load_data("fashion-mnist")
    return ImageData(data.name, data.train[:8000], data.train[8000:], data.class_names, data.mean, data.std)


def train(data: ImageData, precision: str, objective: Objective, seed: int) -> nn.Module:
    """Return a trained network."""
    torch.manual_seed(seed)
    model = quantize(build_model("cnn"), precision)
    fit(model, data, objective, epochs=8, seed=seed, progress=False)
    return model.eval()


def distilled(teacher: nn.Module, objective: Objective) -> Objective:
    """Return `objective` plus the divergence from the teacher's softened answers."""

    def both(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(x) / TEMPERATURE, 1)
        answer = F.log_softmax(model(x) / TEMPERATURE, 1)
        divergence = F.kl_div(answer, wanted, reduction="batchmean", log_target=True)
        return objective(model, x, y) + TEMPERATURE**2 * divergence

    return both


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
        teacher = train(data, "fp32", cross_entropy, seed)
        recipes = {
            "w2a2, plain": cross_entropy,
            "w2a2, ratio 0.5": SaliencyGuided(),
            "w2a2, ratio 0.75": SaliencyGuided(0.75),
            "w2a2, ratio 0.75, filled with black": SaliencyGuided(0.75, fill="black"),
            "w2a2, ratio 0.75, distilled": distilled(teacher, SaliencyGuided(0.75)),
        }
        rows.setdefault("fp32, plain", []).append(judge(teacher, data))
        for name, objective in tqdm(recipes.items(), unit="recipe", leave=False):
            rows.setdefault(name, []).append(judge(train(data, "w2a2", objective, seed), data))
    columns = ["accuracy", "deletion, black", "insertion, black", "deletion, blur", "insertion, blur", "on object"]
    print(
        f"| recipe (seeds {', '.join(map(str, seeds))}) | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns)
    )
    for name, values in rows.items():
        means = torch.tensor(values).mean(0).tolist()
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
