"""Size, speed, memory and agreement of the exported files: ``python -m benchmarks.deployment``.

Prints a markdown table. Latencies are medians over interleaved runs in one process for each file, with random images;
peak memory is what a fresh process that only loads and runs the file takes above one that only imports onnxruntime
(read from ``/proc``, so on Linux only).
The weights are untrained with batch-norms stirred, so the table says nothing about accuracy; agreement is the share of
images for which the file names the same class as the torch model.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from qsal_helpers import build_model, load_data, quantize
from qsal_helpers.export import align_biases, latencies, onnx_session, peak_memory, save_onnx

NETWORKS = ("vgg_small", "lenet5")
BATCHES = (1, 64)
VARIANTS = (
    ("fp32", "float32"),
    ("w8a8", "int8"),
    ("w4a4", "int8"),
    ("w2a2", "int8"),
    ("w4a4", "packed"),
    ("w2a2", "packed"),
)
IMAGES = 200


def processor() -> str:
    """Return the processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def network(name: str) -> nn.Module:
    """Return a network with batch-norms as after some training."""
    torch.manual_seed(0)
    model = build_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def rows(name: str, folder: Path, threads: int, runs: int) -> list[str]:
    """Return the table's rows for one network."""
    data = load_data("fashion-mnist", size=500)
    images = load_data("fashion-mnist").test.images[:IMAGES]
    base, paths, agreement = network(name), {}, {}
    for precision, storage in VARIANTS:
        model = base if precision == "fp32" else align_biases(quantize(base, precision), data).eval()
        key = precision, storage
        paths[key] = save_onnx(model, folder / f"{name}-{precision}-{storage}.onnx", data, storage)
        with torch.no_grad():
            expected = model(data.normalise(images)).argmax(1).numpy()
        found = onnx_session(paths[key], threads).run(None, {"image": images.numpy()})[0].argmax(1)
        agreement[key] = int((found == expected).sum())
    sessions = {key: onnx_session(path, threads) for key, path in paths.items()}
    times = {batch: latencies(sessions, batch, runs=max(5, runs // batch)) for batch in BATCHES}
    result = []
    for key, path in paths.items():
        smaller = paths["fp32", "float32"].stat().st_size / path.stat().st_size
        columns = [name, *key, f"{path.stat().st_size:,}", f"1/{smaller:.2f}"]
        for batch in BATCHES:
            columns += [f"{times[batch][key]:.3f}", f"{times[batch][key] / times[batch]['fp32', 'float32']:.2f}"]
        result.append(
            "| " + " | ".join([*columns, f"{peak_memory(path, threads):.1f}", f"{agreement[key]}/{IMAGES}"]) + " |"
        )
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Size, speed, memory and agreement of the exported files.")
    parser.add_argument("--threads", type=int, default=1, help="threads for one operation (default: 1)")
    parser.add_argument("--runs", type=int, default=300, help="calls at batch 1; fewer for larger batches")
    options = parser.parse_args()
    print(
        f"{processor()}, {options.threads} thread(s); onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, "
        f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}\n"
    )
    heads = ["network", "precision", "storage", "bytes", "of fp32"]
    for batch in BATCHES:
        heads += [f"ms, batch {batch}", "x fp32"]
    heads += ["peak memory, MB", "same class as torch"]
    print("| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            print("\n".join(rows(name, Path(folder), options.threads, options.runs)), flush=True)


if __name__ == "__main__":
    main()
