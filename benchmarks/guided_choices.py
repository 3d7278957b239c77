"""What each choice of saliency-guided training does: `python -m benchmarks.guided_choices` trains and prints a table.

FashionMNIST-mini, "cnn"; the table behind the defaults of `SaliencyGuided`. About ten minutes on two cores.
"""

import argparse

import pandas as pd
import torch
from tqdm.auto import tqdm

from qsal_helpers import SaliencyGuided, build_model, evaluate, fit, load_data, quantize
from qsal_helpers.metrics import deletion_auc, gini, insertion_auc
from qsal_helpers.saliency import saliency_map
from qsal_helpers.training import cross_entropy

CHOICES = {
    "plain": cross_entropy,
    "default": SaliencyGuided(),
    "as published": SaliencyGuided.as_published(),
    "signed": SaliencyGuided(rank_by="signed"),
    "logit": SaliencyGuided(saliency="logit"),
    "clean branch moves": SaliencyGuided(detach_clean=False),
    "fill mean": SaliencyGuided(fill="mean"),
    "fill black": SaliencyGuided(fill="black"),
    "fill blur": SaliencyGuided(fill="blur"),
    "ratio 0.25": SaliencyGuided(mask_ratio=0.25),
    "ramp": SaliencyGuided(ramp_steps=200),
}


def main() -> None:
    """Train every choice with every seed and print means with the range over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--images", type=int, default=500, help="test images for the maps' metrics")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    arguments = parser.parse_args()
    data = load_data("fashion-mnist")
    x = data.normalise(data.test.images[: arguments.images])
    rows = []
    bar = tqdm([(choice, seed) for choice in arguments.choices for seed in range(arguments.seeds)], unit="run")
    for choice, seed in bar:
        torch.manual_seed(seed)
        model = quantize(build_model("cnn"), arguments.precision)
        history = fit(model, data, CHOICES[choice], epochs=arguments.epochs, seed=seed, progress=False)
        row = {"choice": choice, "accuracy": evaluate(model, data), "seconds": sum(history.seconds)}
        for method in ("gradient", "input_x_gradient"):
            maps = saliency_map(model, x, method=method)
            row[f"{method}: deletion"] = deletion_auc(model, x, maps).mean().item()
            row[f"{method}: insertion"] = insertion_auc(model, x, maps).mean().item()
        row["gradient: Gini"] = gini(saliency_map(model, x)).mean().item()
        random = saliency_map(model, x, method="random")
        row["random: deletion"] = deletion_auc(model, x, random).mean().item()
        row["random: insertion"] = insertion_auc(model, x, random).mean().item()
        rows.append(row)
    grouped = pd.DataFrame(rows).groupby("choice", sort=False)
    spread = (grouped.max() - grouped.min()).map(" ±{:.3f}".format)
    print(f"{arguments.precision}, {arguments.epochs} epochs, {arguments.seeds} seeds: mean ± range over seeds")
    print((grouped.mean().map("{:.3f}".format) + spread).T.to_string())


if __name__ == "__main__":
    main()
