"""Does a training in bfloat16 end where one in float32 does? ``python -m benchmarks.bfloat16``.

Reads the records of the study (FashionMNIST-mini, plain "cnn") and prints bfloat16 minus float32: the mean over the
seeds, the 95 % interval of the paired difference, and a star where it stands Holm's correction over its column.
``python -m qsal_helpers.study run --group bfloat16``, and the same with ``fashion-mnist-mini``, make them.
"""

import argparse
from pathlib import Path

import pandas as pd

from qsal_helpers.evidence import differences
from qsal_helpers.study import MEASURES, load_records, main_records, with_measures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Training in bfloat16 against training in float32.")
    parser.add_argument("--folder", type=Path, default=Path("notebooks/results/study"), help="of the records")
    records = main_records(load_records(parser.parse_args().folder), "bfloat16")
    records, found = with_measures(records), {}
    for precision in ("fp32", "w4a4", "w2a2"):
        wanted = {"data": "fashion-mnist", "size": "mini", "objective": "plain", "precision": precision}
        pair = (wanted | {"bfloat16": low} for low in (True, False))
        found[precision] = differences(records, *pair, ["accuracy", *MEASURES])
    table = pd.DataFrame(found)
    print("| measure | " + " | ".join(table) + " |\n|---|" + "---|" * len(table.columns))
    for row in table.itertuples():
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
