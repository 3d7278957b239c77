"""Does training ever collapse? `python -m benchmarks.stability` trains many seeds and prints their accuracies.

20 seeds x 3 precisions take about half an hour on two cores; `--seeds 3` is a quick look.
"""

import argparse

import pandas as pd
import torch
from tqdm.auto import tqdm

from qsal_helpers import build_model, evaluate, fit, load_data, quantize

FLOOR = 0.80


def main() -> None:
    """Train, print the table, and exit with 1 if a run ends below the floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["w4a4", "mixed-4/2", "w2a2"])
    arguments = parser.parse_args()
    data = load_data("fashion-mnist")
    rows = []
    for seed in tqdm(range(arguments.seeds), unit="seed"):
        for precision in arguments.precisions:
            torch.manual_seed(seed)
            model = quantize(build_model("cnn"), precision)
            fit(model, data, epochs=arguments.epochs, seed=seed, progress=False)
            rows.append({"precision": precision, "seed": seed, "accuracy": evaluate(model, data)})
    table = pd.DataFrame(rows).groupby("precision", sort=False).accuracy.agg(["count", "min", "mean", "max"])
    print(f"FashionMNIST-mini test accuracy, cnn, {arguments.epochs} epochs, torch {torch.__version__}")
    print(table.to_string(float_format="{:.4f}".format))
    low = [row for row in rows if row["accuracy"] < FLOOR]
    print(f"runs below {FLOOR:.0%}: {len(low)}", *low, sep="\n")
    raise SystemExit(bool(low))


if __name__ == "__main__":
    main()
