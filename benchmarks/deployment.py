"""Size, speed, memory and agreement of the exported files: ``python -m benchmarks.deployment``.

Prints a markdown table. Latencies are medians over interleaved runs in one process for each file, with random images;
peak memory is what a fresh process that only loads and runs the file takes above one that only imports onnxruntime
(read from ``/proc``, so on Linux only).
The weights are untrained with batch-norms stirred, so the table says nothing about accuracy; agreement is the share of
images for which the file names the same class as the torch model.

A second table asks whether 2 bits can be faster than 8 without a compiler: one matrix product by AND and popcount in
NumPy against onnxruntime's int8 and float32.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qsal_helpers import build_model, load_data, quantize
from qsal_helpers.export import align_biases, latencies, onnx_session, peak_memory, save_onnx
from qsal_helpers.study import machine

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
# Rows (the pixels of one image, or the images), weights a filter, filters.
PRODUCTS = (
    ("vgg_small conv4, 1 image", 14 * 14, 128 * 9, 128),
    ("cnn fc1, 1 image", 1, 48 * 7 * 7, 128),
    ("cnn fc1, 64 images", 64, 48 * 7 * 7, 128),
)


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


def popcount_matmul(activations: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Multiply 2-bit numbers by AND and popcount: ``sum_n u_n a_n = sum_ij 2**(i+j) popcount(u_i & a_j)``.

    Parameters
    ----------
    activations : uint8, 0 to 3, ``(rows, K)``; packed here, as in a network they are new for each image.
    planes : `bit_planes` of the weights, ``(2, O, words)``.

    Returns
    -------
    int64, ``(rows, O)``.
    """
    total = 0
    for j, ones in enumerate(bit_planes(activations)):
        for i, weights in enumerate(planes):
            counts = np.bitwise_count(ones[:, None] & weights)
            total = total + (counts.sum(2, dtype=np.int64) << (i + j))
    return total


def bit_planes(numbers: np.ndarray) -> np.ndarray:
    """Return the two bits of 2-bit numbers, ``(rows, K)``, as uint64 words, ``(2, rows, ceil(K / 64))``."""
    padded = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % 64)))
    return np.stack([np.packbits(padded >> i & 1, axis=1).view(np.uint64) for i in (0, 1)])


def product_session(kind: str, weights: np.ndarray, element: int, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of one operation, "MatMul" or "MatMulInteger", with constant `weights` ``(K, O)``."""
    node = helper.make_node(kind, ["x", "w"], ["y"])
    output = TensorProto.FLOAT if kind == "MatMul" else TensorProto.INT32
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info("x", element, ["N", len(weights)])],
        [helper.make_tensor_value_info("y", output, ["N", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def product_rows(name: str, rows: int, inner: int, outputs: int, threads: int, runs: int) -> str:
    """Return a row: milliseconds of one product of 2-bit numbers, computed in three ways that take turns."""
    generator = np.random.default_rng(0)
    activations = generator.integers(0, 4, (rows, inner), dtype=np.uint8)
    weights = generator.integers(0, 4, (outputs, inner), dtype=np.uint8)
    planes, floats = bit_planes(weights), activations.astype(np.float32)
    fp32 = product_session("MatMul", weights.T.astype(np.float32), TensorProto.FLOAT, threads)
    int8 = product_session("MatMulInteger", weights.T.astype(np.int8), TensorProto.UINT8, threads)
    ways = {
        "fp32": lambda: fp32.run(None, {"x": floats})[0],
        "int8": lambda: int8.run(None, {"x": activations})[0],
        "popcount": lambda: popcount_matmul(activations, planes),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        results = []
        for way, product in ways.items():
            started = time.perf_counter()
            results.append(product())
            times[way].append(1000 * (time.perf_counter() - started))
        if not all((result == results[0]).all() for result in results):
            raise RuntimeError(f"{name}: the three products differ")
    medians = {way: statistics.median(values) for way, values in times.items()}
    cells = [name, f"{rows} x {inner} x {outputs}", *(f"{value:.3f}" for value in medians.values())]
    return "| " + " | ".join([*cells, f"{medians['popcount'] / medians['int8']:.1f}"]) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Size, speed, memory and agreement of the exported files.")
    parser.add_argument("--threads", type=int, default=1, help="threads for one operation (default: 1)")
    parser.add_argument("--runs", type=int, default=300, help="calls at batch 1; fewer for larger batches")
    options = parser.parse_args()
    print(
        f"{machine()['processor']}, {options.threads} thread(s); onnxruntime {onnxruntime.__version__}, "
        f"onnx {onnx.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}\n"
    )
    heads = ["network", "precision", "storage", "bytes", "of fp32"]
    for batch in BATCHES:
        heads += [f"ms, batch {batch}", "x fp32"]
    heads += ["peak memory, MiB", "same class as torch"]
    print("| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            print("\n".join(rows(name, Path(folder), options.threads, options.runs)), flush=True)
    print("\n| product of 2-bit numbers | size | ms, fp32 | ms, int8 | ms, popcount in NumPy | x int8 |")
    print("|" + " --- |" * 6)
    for name, *size in PRODUCTS:
        print(product_rows(name, *size, options.threads, max(5, options.runs // 10)), flush=True)


if __name__ == "__main__":
    main()
