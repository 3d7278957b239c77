"""Is the faster guided step as good as the published one? ``python -m benchmarks.guided_choices``.

The paper's prose ranks pixels by magnitude, its authors' code by the signed gradient. So there are two published
procedures, and each of our steps is held against the one with the same ranking.

Reads the records of the study (FashionMNIST-mini, "cnn", fp32, mask ratio 0.5) and prints means over the seeds, with
the 95 % interval of the paired difference from the published procedure. ``python -m qsal_helpers.study run --group
ranking-mini``, and the same with ``fashion-mnist-mini``, ``statistics-mini`` and ``prose-mini``, make the records.
"""

import argparse
from pathlib import Path

from qsal_helpers.evidence import compare
from qsal_helpers.study import MEASURES, load_records, main_records, with_measures

CHOICES = {
    "plain": {"objective": "plain"},
    "default": {"objective": "guided", "rank_by": "signed"},
    "published code": {"objective": "published"},
    "ranked by magnitude": {"objective": "guided", "rank_by": "magnitude"},
    "published prose": {"objective": "published-magnitude"},
    "published code, statistics kept": {"objective": "published-frozen"},
}
BASES = {
    "default": "published code",
    "ranked by magnitude": "published prose",
    "published code, statistics kept": "published code",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Choices of saliency-guided training against the published procedure.")
    parser.add_argument("--folder", type=Path, default=Path("notebooks/results/study"), help="of the records")
    records = with_measures(main_records(load_records(parser.parse_args().folder), "rank_by"))
    wanted = {"data": "fashion-mnist", "size": "mini", "precision": "fp32"}
    records = records[(records[list(wanted)] == list(wanted.values())).all(axis=1)]
    print("| measure | " + " | ".join(CHOICES) + " |\n|---|" + "---|" * len(CHOICES))
    for measure in ("accuracy", *MEASURES):
        cells = []
        for name, choice in CHOICES.items():
            each = compare(records, measure, choice, CHOICES[BASES[name]]) if name in BASES else None
            mean = records[(records[list(choice)] == list(choice.values())).all(axis=1)][measure].mean()
            apart = f" ({each['low']:+.3f} to {each['high']:+.3f})" if each else ""
            cells.append(f"{mean:.3f}{apart}")
        print(f"| {measure} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
