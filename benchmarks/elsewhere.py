"""Batches, maps, curves, imports and growth against what a user would pick instead: `python -m benchmarks.elsewhere`.

Every ratio is taken round by round in one interleaved run, after a check that both sides compute the same. Needs the
extra `bench`; the rows on DataLoader and on growth need the full FashionMNIST (`$QSAL_DATA`).
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from qsal_helpers import build_model, load_data, quantize
from qsal_helpers.data import batches
from qsal_helpers.metrics import deletion_auc
from qsal_helpers.saliency import saliency_map
from qsal_helpers.study import machine

GROWTH = """
import sys, time
from qsal_helpers import build_model, fit, load_data
def train(number):
    fit(build_model("cnn"), load_data("fashion-mnist", number), epochs=1, progress=False, validation=0)

train(500)  # the first steps of a process choose kernels
started = time.perf_counter()
train(int(sys.argv[1]))
print(time.perf_counter() - started)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def interleaved(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Return seconds of both sides (medians) and the median ratio, ours over theirs."""
    ours(), theirs()
    pairs = []
    for _ in range(rounds):
        times = []
        for side in (ours, theirs):
            started = time.perf_counter()
            side()
            times.append(time.perf_counter() - started)
        pairs.append(times)
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return mine, other, statistics.median(a / b for a, b in pairs)


def batches_row(rounds: int) -> list[str]:
    """An epoch of normalised batches against torchvision's data set and DataLoader."""
    import os

    import torchvision

    data = load_data("fashion-mnist", "full")
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(data.mean, data.std)]
    )
    dataset = torchvision.datasets.FashionMNIST(os.environ["QSAL_DATA"], transform=transform)
    first = next(iter(DataLoader(dataset, 128)))[0]
    assert torch.allclose(first, next(iter(batches(data.train, data, 128)))[0], atol=1e-5)

    def ours() -> int:
        return sum(len(y) for _, y in batches(data.train, data, 128, shuffle=True))

    rows = []
    for workers in (0, 2):
        loader = DataLoader(dataset, 128, shuffle=True, num_workers=workers)
        mine, other, ratio = interleaved(ours, lambda loader=loader: sum(len(y) for _, y in loader), rounds)
        text = f"| batches, 60,000 images, against DataLoader with {workers} workers | {mine:.2f} s | {other:.2f} s "
        rows.append(text + f"| {1 / ratio:.0f} times faster | ≥ 20 times |")
    return rows


def maps_rows(rounds: int) -> list[str]:
    """The gradient and integrated gradients against Captum, in the two layouts a model can have."""
    from captum.attr import IntegratedGradients, Saliency

    rows = []
    for name, channels, number in (("cnn", 1, 128), ("resnet20", 3, 32)):
        for precision in ("fp32", "w4a4"):
            for layout in (torch.contiguous_format, torch.channels_last):
                torch.manual_seed(0)
                model = quantize(build_model(name, channels), precision).eval().to(memory_format=layout)
                x = torch.randn(number, *model.input_shape)
                y = model(x).argmax(1)

                def gradient(model=model, x=x, y=y) -> Tensor:
                    parts = zip(x.split(64), y.split(64), strict=True)
                    maps = [Saliency(model).attribute(b.clone().requires_grad_(), t).sum(1) for b, t in parts]
                    return torch.cat(maps)

                few, classes = x[:4], y[:4]

                def integrated(model=model, x=few, y=classes) -> Tensor:
                    explain = IntegratedGradients(model).attribute
                    found = explain(x, torch.zeros_like(x), target=y, n_steps=32, internal_batch_size=64)
                    return found.abs().sum(1).float()

                mine = {
                    "gradient": lambda model=model, x=x, y=y: saliency_map(model, x, y),
                    "integrated gradients": lambda model=model, x=few, y=classes: saliency_map(
                        model, x, y, "integrated_gradients", steps=32, baseline=0.0
                    ),
                }
                for method, theirs in (("gradient", gradient), ("integrated gradients", integrated)):
                    a, b = mine[method](), theirs()
                    # Float rounding can tip a ReLU over in an image, and in a quantized network many activations.
                    same = (a - b).abs().amax((1, 2)) < 1e-3 * b.abs().max()
                    assert precision != "fp32" or same.float().mean() > 0.95
                    seconds, other, ratio = interleaved(mine[method], theirs, rounds)
                    where = f"{name} {precision}, {str(layout).removeprefix('torch.')}"
                    target = "≤ 1.05" if method == "gradient" else "≤ 0.8"
                    rows.append(
                        f"| {method} against Captum, {where} | {1e3 * seconds:.0f} ms | {1e3 * other:.0f} ms "
                        f"| {ratio:.2f} | {target} |"
                    )
    return rows


def curves_rows(rounds: int) -> list[str]:
    """Deletion curves against Quantus' pixel flipping, with the same steps and the same scores."""
    import quantus

    data = load_data("fashion-mnist", 500)
    rows = []
    for name, precision, layout in (
        ("lenet5", "fp32", torch.contiguous_format),
        ("cnn", "fp32", torch.contiguous_format),
        ("cnn", "fp32", torch.channels_last),
        ("cnn", "w4a4", torch.channels_last),
    ):
        torch.manual_seed(0)
        model = quantize(build_model(name), precision).eval().to(memory_format=layout)
        x = data.normalise(data.test.images[:32])
        y, maps, lowest = model(x).argmax(1), saliency_map(model, x), float(x.min())
        flipping = quantus.PixelFlipping(
            features_in_step=28, perturb_baseline=lowest, disable_warnings=True, return_auc_per_sample=False
        )
        given = {"x_batch": x.numpy(), "y_batch": y.numpy(), "a_batch": maps[:, None].numpy()}

        def ours(model=model, x=x, maps=maps, y=y, **more: bool) -> Tensor:
            return deletion_auc(model, x, maps, y, steps=28, **more)

        def theirs(model=model, flipping=flipping, given=given) -> object:
            return flipping(model=model, **given)

        same = torch.tensor(np.array(theirs())).float()
        assert precision != "fp32" or torch.allclose(ours(return_curve=True)[:, 1:], same, rtol=1e-3, atol=1e-4)
        mine, other, ratio = interleaved(ours, theirs, rounds)
        where = f"{name} {precision}, {str(layout).removeprefix('torch.')}"
        text = f"| deletion curves against Quantus, {where} | {1e3 * mine:.0f} ms | {1e3 * other:.0f} ms "
        rows.append(text + f"| {1 / ratio:.2f} times faster | ≥ 2 times |")
    return rows


def import_row(rounds: int) -> list[str]:
    """The package's import against torch's, each in a fresh process."""
    load = lambda module: lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    mine, other, ratio = interleaved(load("qsal_helpers"), load("torch"), rounds)
    return [f"| import qsal_helpers against import torch | {mine:.2f} s | {other:.2f} s | {ratio:.2f} | ≤ 1.1 |"]


def growth_rows() -> list[str]:
    """Seconds and peak memory (Linux) of loading and one epoch against the number of images, in fresh processes."""
    rows = ["", "| images | seconds of one epoch | microseconds an image | peak MiB |", "|---|---|---|---|"]
    for number in (1_000, 4_000, 16_000, 60_000):
        answer = subprocess.run(
            [sys.executable, "-c", GROWTH, str(number)], check=True, capture_output=True, text=True
        ).stdout.split()
        seconds, peak = map(float, answer)
        rows.append(f"| {number:,} | {seconds:.2f} | {1e6 * seconds / number:.0f} | {peak / 1024:.0f} |")
    return rows


def main() -> None:
    """Print the tables."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()['processor']}\n")
    print("| what | ours | theirs | ratio | target |\n|---|---|---|---|---|")
    parts = [
        lambda: import_row(rounds),
        lambda: batches_row(3),
        lambda: maps_rows(rounds),
        lambda: curves_rows(rounds),
        growth_rows,
    ]
    for part in tqdm(parts, leave=False):
        print("\n".join(part()), flush=True)
    print(f"\npeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
