"""Do torch, the integers and the ONNX files agree? ``python -m benchmarks.agreement``.

Prints a markdown table. Each network is trained for a moment, its biases aligned, and then all test images of a mini
set go through the torch model (in float32), the integer model, and its int8 and packed files in onnxruntime. Each
column holds two counts: images with the same class as torch, and images whose logits are all within one step of the
integer model's output scale from torch's. Where two classes have exactly equal integer logits, float noise decides
torch's class, and the first count may miss that image.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from qsal_helpers import build_model, fit, load_data, quantize
from qsal_helpers.data import ImageData
from qsal_helpers.export import align_biases, onnx_session, save_onnx, to_integer

DATA = ("fashion-mnist", "mnist")
NETWORKS = ("lenet5", "cnn", "vgg_small", "resnet20")
PRECISIONS = ("w4a4", "mixed-4/2", "w2a2")


def trained(name: str, precision: str, data: ImageData, number: int) -> nn.Module:
    """Return a network after one epoch on `number` images."""
    some = dataclasses.replace(data, train=data.train[:number])
    torch.manual_seed(0)
    model = quantize(build_model(name, data.train.images.shape[1]), precision)
    fit(model, some, epochs=1, batch_size=32, lr=0.05, progress=False, validation=0)
    return model


@torch.no_grad()
def counts(model: nn.Module, data: ImageData, images: torch.Tensor) -> dict[str, str]:
    """Return a table's row for one model: its accuracy and the two counts of each deployed form."""
    expected = np.concatenate([model(data.normalise(some)).numpy() for some in images.split(100)])
    net = to_integer(model, data)
    logits = {"integers": net(images) * net.output_scale}
    with tempfile.TemporaryDirectory() as folder:
        for storage in ("int8", "packed"):
            session = onnx_session(save_onnx(model, Path(folder) / "net.onnx", data, storage))
            parts = [session.run(None, {"image": some.numpy()})[0] for some in images.split(100)]
            logits[f"ONNX {storage}"] = np.concatenate(parts)
    labels = data.test.labels[: len(images)].numpy()
    row = {"accuracy": f"{(expected.argmax(1) == labels).mean():.1%}", "images": f"{len(images):,}"}
    for form, found in logits.items():
        same = int((found.argmax(1) == expected.argmax(1)).sum())
        close = int((abs(found - expected).max(1) <= net.output_scale).sum())
        row[form] = f"{same:,}, {close:,}"
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Agreement of torch, the integers and the ONNX files.")
    parser.add_argument("--images", type=int, help="test images of each set (default: all)")
    parser.add_argument("--train", type=int, default=2000, help="training images (default: 2000)")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="default: all four")
    parser.add_argument("--data", nargs="+", default=DATA, help="default: both")
    parser.add_argument("--plain", action="store_true", help="leave the biases as training left them")
    options = parser.parse_args()
    heads = None
    cases = [(d, n, p) for d in options.data for n in options.networks for p in PRECISIONS]
    for name, network, precision in tqdm(cases, "agreement"):
        data = load_data(name)
        model = trained(network, precision, data, options.train)
        if not options.plain:
            model = align_biases(model, data)
        row = {"data": name, "network": network, "precision": precision}
        row |= counts(model, data, data.test.images[: options.images])
        if heads is None:
            heads = list(row)
            tqdm.write("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
        tqdm.write("| " + " | ".join(row.values()) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
