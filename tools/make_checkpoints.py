"""Train the small models that lesson 05 loads, and write them to notebooks/results/checkpoints.

python tools/make_checkpoints.py fashion-mnist     16 models of "cnn", on the images in the package
python tools/make_checkpoints.py cifar10           4 models of ResNet-20; needs the data, see load_data

A file that is there already is left alone, so the command can be stopped and started again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from qsal_helpers import SaliencyGuided, build_model, evaluate, fit, load_data, metrics, quantize
from qsal_helpers.checkpoints import load_model, save_model
from qsal_helpers.data import ImageData
from qsal_helpers.saliency import saliency_map

CHECKPOINTS = Path(__file__).resolve().parent.parent / "notebooks" / "results" / "checkpoints"
SEED = 0


@dataclass(frozen=True)
class Grid:
    """The models of one data set: every precision with every mask ratio, 0 being plain training."""

    network: str
    size: str | int
    precisions: tuple[str, ...]
    ratios: tuple[float, ...]
    epochs: int
    augment: bool


GRIDS = {
    "fashion-mnist": Grid("cnn", "mini", ("fp32", "w4a4", "mixed-4/2", "w2a2"), (0, 0.5, 0.25, 0.75), 4, False),
    "cifar10": Grid("resnet20", 10_000, ("fp32", "w2a2"), (0, 0.5), 8, True),
}


def checkpoint(dataset: str, precision: str, ratio: float) -> Path:
    """Return where a model lies."""
    return CHECKPOINTS / dataset / f"{precision.replace('/', '-')}-{ratio:g}.safetensors"


def measure(model: torch.nn.Module, data: ImageData, images: int) -> dict[str, float]:
    """Return the accuracy on all test images, and the mean metrics of the gradient map on the first few of them."""
    x = data.normalise(data.test.images[:images])
    found = {"accuracy": evaluate(model, data), "metric_images": len(x)}
    for name, prefix in (("gradient", ""), ("random", "random_")):
        maps = saliency_map(model, x, method=name)
        found[f"{prefix}gini"] = metrics.gini(maps).mean().item()
        found[f"{prefix}deletion"] = metrics.deletion_auc(model, x, maps).mean().item()
        found[f"{prefix}insertion"] = metrics.insertion_auc(model, x, maps).mean().item()
    return found


def make(path: Path, data: ImageData, grid: Grid, precision: str, ratio: float, images: int) -> None:
    """Train one model, measure it as its file gives it back, and write it."""
    torch.manual_seed(SEED)
    model = quantize(build_model(grid.network, data.in_channels), precision)
    history = fit(model, data, SaliencyGuided(ratio), epochs=grid.epochs, seed=SEED, augment=grid.augment)
    if history.interrupted:
        raise KeyboardInterrupt
    path.parent.mkdir(parents=True, exist_ok=True)
    unmeasured = path.with_suffix(".part")
    save_model(model, unmeasured, half=True)
    model = load_model(unmeasured)
    save_model(
        model,
        path,
        half=True,
        data=data.name,
        precision=precision,
        mask_ratio=ratio,
        seed=SEED,
        epochs=history.epochs,
        train_images=len(data.train),
        test_images=len(data.test),
        seconds=round(sum(history.seconds), 1),
        torch=torch.__version__,
        **measure(model, data, images),
    )
    unmeasured.unlink()


def main() -> None:
    """Make what is missing of one grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=list(GRIDS))
    parser.add_argument("--images", type=int, default=200, help="test images for the maps' metrics (default 200)")
    arguments = parser.parse_args()
    grid = GRIDS[arguments.dataset]
    data = load_data(arguments.dataset, grid.size)
    todo = [(p, r) for r in grid.ratios for p in grid.precisions if not checkpoint(arguments.dataset, p, r).exists()]
    for precision, ratio in tqdm(todo, unit="model"):
        make(checkpoint(arguments.dataset, precision, ratio), data, grid, precision, ratio, arguments.images)


if __name__ == "__main__":
    main()
