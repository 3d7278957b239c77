"""Images and labels as tensors in memory: two small data sets in the package, three full ones through torchvision.

>>> data = load_data("fashion-mnist", size=1000)
>>> x, y = next(batches(data.train, data, batch_size=128))
>>> x.shape, x.dtype, y.shape
(torch.Size([128, 1, 28, 28]), torch.float32, torch.Size([128]))
"""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch.nn.functional import pad

from ._arguments import check_device, check_flag, check_number, check_whole, described, first_line

PADDING = 4  # pixels of black around an image before a random crop, as usual for CIFAR-10

_MINI_FOLDER = Path(__file__).parent / "datasets"

_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}

# Mean and standard deviation of a pixel / 255 over the official training sets; tests recompute them.
_MEAN = {"mnist": (0.1307,), "fashion-mnist": (0.2860,), "cifar10": (0.4914, 0.4822, 0.4465)}
_STD = {"mnist": (0.3081,), "fashion-mnist": (0.3530,), "cifar10": (0.2470, 0.2435, 0.2616)}

_TORCHVISION_NAME = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}

# sha256 of the files in `datasets/`, and of the unpacked files of the full sets.
_MINI_FILES = {
    "mnist": {
        "t10k-images-idx3-ubyte.gz": "979dee59c1e4e6bd1c94dbbe79c8ed7b4fa8baddd88b6747726838b41a14f934",
        "t10k-labels-idx1-ubyte.gz": "46355bf04ab88e61108752341145eedb56b7fcb80e51c9caa11d28870226ee5f",
        "train-images-idx3-ubyte.gz": "00059a6f95bd43f0cea7b7d00a8f8d3d6bf90bcebc85364d4ec38a3ea84032f8",
        "train-labels-idx1-ubyte.gz": "adc37d8d5bc5b10f104959eccb7cee9f0c1b3ddb77b16e91329a6fcaa34147a6",
    },
    "fashion-mnist": {
        "t10k-images-idx3-ubyte.gz": "08704bf0675f2e43d90f110901132ceca070e89641a8431ed3e59379bc1e05c8",
        "t10k-labels-idx1-ubyte.gz": "1b2ec716182fcbd346d71397a2fcc8db3e75eb2e701137778ff92ebc5425c51c",
        "train-images-idx3-ubyte.gz": "29cec8e9d8d983b7a70f62ca9f26592656549549191e5b894b70cca5a2e62e9b",
        "train-labels-idx1-ubyte.gz": "fdfc0c4936706dacafaf1f60e4d2b0ce8dc046f24d09071078325d21b7bab314",
    },
}
_FULL_FILES = {
    "mnist": {
        "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    "fashion-mnist": {
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    "cifar10": {
        "cifar-10-batches-py/batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
        "cifar-10-batches-py/data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        "cifar-10-batches-py/data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        "cifar-10-batches-py/data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        "cifar-10-batches-py/data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        "cifar-10-batches-py/data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        "cifar-10-batches-py/test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    },
}


class DataNotFound(FileNotFoundError):
    """A data set is not on this machine; the message says how to get it."""


class DataDamaged(ValueError):
    """A data file is truncated or altered; the message names it and says what to do."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with their labels.

    Parameters
    ----------
    images : torch.Tensor
        uint8, shape (N, C, H, W), from 0 (black) to 255.
    labels : torch.Tensor
        int64, shape (N,).

    Examples
    --------
    >>> split = Split(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6))
    >>> len(split), split[:2].labels, split[split.labels > 3].labels
    (6, tensor([0, 1]), tensor([4, 5]))
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if not _is(self.images, torch.uint8) or self.images.ndim != 4:
            floats = isinstance(self.images, torch.Tensor) and self.images.is_floating_point()
            how = ": floats from 0 to 1 become that by (255 * images).round().to(torch.uint8)" if floats else ""
            raise ValueError(f"images must be uint8 (N, C, H, W), got {described(self.images)}{how}.")
        if not _is(self.labels, torch.int64) or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 ({len(self.images)},), got {described(self.labels)}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Sequence[int] | torch.Tensor) -> "Split":
        images, labels = self.images[index], self.labels[index]
        # A single number, of whatever kind, gives a split of one image.
        return Split(images[None], labels[None]) if labels.ndim == 0 else Split(images, labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {' x '.join(str(side) for side in self.images.shape[1:])})"

    def to(self, device: str | torch.device) -> "Split":
        """Return the same split on another device, for instance once before training on a GPU."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: a training and a test split, and what is needed to normalise and to show its images.

    Parameters
    ----------
    name : str
        "mnist", "fashion-mnist" or "cifar10" (or a name of your own).
    train, test : Split
        The images to learn from, and the images kept for the final figure.
    class_names : tuple of str
        What label 0, 1, ... means.
    mean, std : tuple of float, or a tensor or array of them
        One number a channel, in units of pixel / 255; kept as a tuple.
    mirror : bool
        Whether an image still shows its class when mirrored left to right, so that augmentation may do so.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool = True

    def __post_init__(self) -> None:
        check_flag(self.mirror, "mirror")
        if not isinstance(self.class_names, (tuple, list)):
            raise TypeError(f"class_names must be a tuple of names, got {type(self.class_names).__name__}.")
        for name, split in (("train", self.train), ("test", self.test)):
            if not isinstance(split, Split):
                raise TypeError(f"{name} must be a Split, got {type(split).__name__}.")
            if split.images.shape[1] != self.in_channels:
                raise ValueError(f"{name} has {split.images.shape[1]} channels, and train has {self.in_channels}.")
            size, wanted = (" x ".join(map(str, part.images.shape[2:])) for part in (split, self.train))
            if size != wanted:
                raise ValueError(f"{name} has images of {size} pixels, and train of {wanted}.")
            if len(split) and not 0 <= split.labels.min() <= split.labels.max() < self.num_classes:
                raise ValueError(
                    f"{name} has labels from {split.labels.min()} to {split.labels.max()}, and class_names holds "
                    f"{self.num_classes} names: labels run from 0 to {self.num_classes - 1}."
                )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if isinstance(values, (torch.Tensor, np.ndarray)) and values.ndim == 1:
                values = tuple(values.tolist())
                object.__setattr__(self, name, values)
            if not isinstance(values, (tuple, list)) or len(values) != self.in_channels:
                raise ValueError(
                    f"{name} must be a tuple: one number for each of the {self.in_channels} channels of images "
                    f"{tuple(self.train.images.shape)} as (N, C, H, W); if they are (N, H, W, C), give "
                    "images.permute(0, 3, 1, 2)."
                )
            for value in values:  # of pixels / 255, not of 0 to 255
                check_number(value, f"each {name} of pixel / 255", low=0.0 if name == "mean" else 1e-30, high=1)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Number of channels of an image: 1 for grey, 3 for colour."""
        return self.train.images.shape[1]

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn pixels into what a model is given: (pixel / 255 - mean) / std, channel by channel.

        Parameters
        ----------
        images : torch.Tensor
            uint8, shape (N, C, H, W).

        Returns
        -------
        torch.Tensor
            float32, shape (N, C, H, W), in channels_last memory format, in which convolutions run faster.

        Raises
        ------
        ValueError
            If `images` has another type or number of dimensions.

        Examples
        --------
        >>> data = load_data("mnist", size=100)
        >>> x = data.normalise(data.train.images[:2])
        >>> x.shape, x.dtype
        (torch.Size([2, 1, 28, 28]), torch.float32)
        """
        if not _is(images, torch.uint8) or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"normalise takes uint8 images (N, C, H, W), got {described(images)}.")
        return _normalise(images, *self._scale_and_shift(images.device))

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        """Turn normalised images back into pixels to show: the inverse of `normalise`.

        Parameters
        ----------
        x : torch.Tensor
            float, shape (N, C, H, W).

        Returns
        -------
        torch.Tensor
            float32, shape (N, C, H, W), clipped to [0, 1].

        Examples
        --------
        >>> data = load_data("mnist", size=100)
        >>> images = data.train.images[:2]
        >>> bool(torch.equal((255 * data.pixels(data.normalise(images))).round().to(torch.uint8), images))
        True
        """
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ValueError(f"pixels takes normalised images, float (N, C, H, W), got {described(x)}.")
        mean = torch.tensor(self.mean, device=x.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(1, -1, 1, 1)
        return (x.float() * std + mean).clamp(0, 1)

    def _scale_and_shift(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.tensor(self.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(1, -1, 1, 1)
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def load_data(
    name: str, size: str | int = "mini", root: str | os.PathLike | None = None, download: bool = False
) -> ImageData:
    """Load a data set into memory.

    Parameters
    ----------
    name : "mnist", "fashion-mnist" or "cifar10".
    size : "mini", "full" or a number of training images.

        - "mini" comes with the package: FashionMNIST with 10,000 + 2,000 images, MNIST with 4,000 + 1,000.
          MNIST-mini's test images are taken from MNIST's official *training* set, so figures on them cannot be
          compared with published ones. CIFAR-10 has no mini set.
        - "full" is the official set, 60,000 + 10,000 images (CIFAR-10: 50,000 + 10,000), in its official order.
        - With a number n, the training images are the first n of the mini set if it has that many
          (its order is shuffled, with the classes in turn), else n images of the full set, drawn in the same way.
          There are n // 5 test images, but at least 100 and at most what there is.
    root : the folder that holds the full sets as torchvision lays them out. If not given: the folder named in
        `$QSAL_DATA`; if that is not set, a folder `qsal` in the user's cache.
    download : whether to download a full set that is not in `root` or is damaged there.

    Returns
    -------
    ImageData

    Raises
    ------
    DataNotFound
        If the files are not there and `download` is False, or if the download fails.
    DataDamaged
        If a file is truncated or altered.
    ValueError
        If the name or the size does not exist.
    ImportError
        If a full set is asked for and torchvision cannot be imported.

    Examples
    --------
    >>> data = load_data("fashion-mnist")
    >>> data.train, data.test, data.class_names[9]
    (Split(10000 images of 1 x 28 x 28), Split(2000 images of 1 x 28 x 28), 'Ankle boot')
    >>> load_data("mnist", size=500).train.labels.bincount()
    tensor([50, 50, 50, 50, 50, 50, 50, 50, 50, 50])
    """
    if not isinstance(name, str) or name not in _CLASS_NAMES:
        raise ValueError(f"There is no data set {name!r}; choose one of {', '.join(map(repr, _CLASS_NAMES))}.")
    is_number = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    if not is_number and not (isinstance(size, str) and size in ("mini", "full")):
        raise ValueError(f"size must be 'mini', 'full' or a positive number of training images, got {size!r}.")
    if not isinstance(root, str | os.PathLike | None):
        raise TypeError(f"root must be a folder's path, got {type(root).__name__}.")
    if name == "cifar10" and size == "mini":
        raise DataNotFound(
            "CIFAR-10 has no mini set: download the full set once with "
            "load_data('cifar10', size=2000, download=True), then use load_data('cifar10', size=2000)."
        )

    if size == "mini":
        train, test = _load_mini(name)
    elif size == "full":
        train, test = _load_full(name, root, download)
    else:
        train, test = _load_some(name, size, root, download)
    return ImageData(name, train, test, _CLASS_NAMES[name], _MEAN[name], _STD[name], mirror=name != "mnist")


def batches(
    split: Split,
    data: ImageData,
    batch_size: int,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    device: str | torch.device | None = None,
    augment: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Go through a split once, in normalised batches.

    Every image comes exactly once; the last batch holds what is left. The batches are cut from the tensors in
    memory, on the device where they lie. To train on a GPU, move the images there once: `split.to("cuda")`.

    Parameters
    ----------
    split : Split
        The images to go through, such as `data.train`.
    data : ImageData
        Holds the mean and the std to normalise with.
    batch_size : int
        Images a batch.
    shuffle : bool
        Whether to go through the images in a random order.
    generator : torch.Generator, optional
        A CPU generator for the order and the augmentation; the same seed gives the same batches.
        If not given, torch's own generator is used.
    device : str or torch.device, optional
        Where the batches are wanted; if not given, where the images are.
    augment : bool
        Whether to augment: 4 black pixels are added on each side, a window of the old size is cut out at a random
        place, and half of the images are mirrored left to right, as is common for CIFAR-10 (He et al. 2016,
        arXiv:1512.03385, section 4.2). Data without `mirror` is only shifted, MNIST for one: most mirrored digits are
        no digits.

    Yields
    ------
    x : torch.Tensor
        float32, shape (B, C, H, W), normalised, channels_last.
    y : torch.Tensor
        int64, shape (B,).

    Raises
    ------
    ValueError
        If `batch_size` is below 1, or the split's images have other channels than the data.

    Examples
    --------
    >>> data = load_data("mnist", size=300)
    >>> [len(y) for x, y in batches(data.train, data, batch_size=128, shuffle=True)]
    [128, 128, 44]
    """
    if not isinstance(split, Split) or not isinstance(data, ImageData):
        found = type(split).__name__, type(data).__name__
        raise TypeError(f"batches takes a Split and the ImageData it is from, got {found[0]} and {found[1]}.")
    if split.images.shape[1] != data.in_channels:
        raise ValueError(f"{data.name} has {data.in_channels} channels, the split has {split.images.shape[1]}")
    check_whole(batch_size, "batch_size")
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}.")
    check_flag(shuffle, "shuffle")
    check_flag(augment, "augment")
    device = split.images.device if device is None else check_device(device)

    def run() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # apart, so that the checks above are made at the call
        home = split.images.device
        # All random numbers of the pass are drawn and moved here: a copy in every step would hold a GPU up.
        order = torch.randperm(len(split), generator=generator).to(home) if shuffle else None
        if augment:
            corners = torch.randint(2 * PADDING + 1, (2, len(split)), generator=generator).to(home)
            share = 0.5 if data.mirror else 0
            mirrored = (torch.rand(len(split), generator=generator) < share).to(home)
        scale, shift = data._scale_and_shift(device)
        for start in range(0, len(split), batch_size):
            here = slice(start, start + batch_size)
            rows = here if order is None else order[here]
            images, y = split.images[rows], split.labels[rows]
            if augment:
                images = _crop_and_mirror(images, corners[:, here], mirrored[here])
            yield _normalise(images.to(device), scale, shift), y.to(device)

    return run()


def stratified_order(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a shuffled order of the examples in which every prefix has nearly the class shares of the whole.

    Parameters
    ----------
    labels : numpy.ndarray
        Integers, shape (N,).
    seed : int
        The same seed gives the same order, with every version of NumPy.

    Returns
    -------
    numpy.ndarray
        A permutation of 0 ... N - 1, int64, shape (N,).

    Examples
    --------
    >>> labels = np.array([0] * 50 + [1] * 50)
    >>> np.bincount(labels[stratified_order(labels)[:10]])
    array([5, 5])
    """
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be a NumPy array of integers, shape (N,), got {described(labels)}.")
    check_whole(seed, "seed", 0, 2**32 - 1)
    random = np.random.RandomState(seed)  # NumPy promises never to change the numbers this old class draws
    shuffled = random.permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((random.permutation(len(labels)), position))


def _normalise(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return x.mul_(scale).add_(shift)


def _crop_and_mirror(images: torch.Tensor, corners: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Cut image i's window at row corners[0, i] and column corners[1, i] of the padded image; mirror some."""
    height, width = images.shape[2:]
    padded = pad(images, (PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, rows, columns, H, W)
    number = torch.arange(len(images), device=images.device)
    cropped = windows.permute(0, 2, 3, 1, 4, 5)[number, corners[0], corners[1]]
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def _load_mini(name: str) -> tuple[Split, Split]:
    content = {}
    for file, checksum in _MINI_FILES[name].items():
        path = _MINI_FOLDER / name / file
        if not path.exists():
            raise DataNotFound(f"{path} is missing from the package: install qsal-helpers again.")
        packed = path.read_bytes()
        if hashlib.sha256(packed).hexdigest() != checksum:
            raise DataDamaged(f"{path} is truncated or altered (its checksum is wrong): install qsal-helpers again.")
        content[file] = gzip.decompress(packed)
    return _parse_idx(content, "train"), _parse_idx(content, "t10k")


def _parse_idx(content: dict[str, bytes], part: str) -> Split:
    """Read the idx format: four bytes of type and dimensions, a big-endian int32 a dimension, then the values."""
    images = content[f"{part}-images-idx3-ubyte.gz"]
    labels = content[f"{part}-labels-idx1-ubyte.gz"]
    number, height, width = np.frombuffer(images, ">i4", count=3, offset=4).tolist()
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(number, 1, height, width)
    return Split(
        torch.from_numpy(pixels.copy()), torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))
    )


def _load_some(name: str, number: int, root: str | os.PathLike | None, download: bool) -> tuple[Split, Split]:
    mini = _load_mini(name) if name in _MINI_FILES else None
    from_mini = mini is not None and number <= len(mini[0])
    train, test = mini if from_mini else _load_full(name, root, download)
    if number > len(train):
        raise ValueError(f"{name} has {len(train)} training images, so size={number} is too large.")
    counts = number, max(100, number // 5)
    if from_mini:
        return train[: counts[0]], test[: counts[1]]
    # Only the chosen images are copied: the whole set twice would take half a gigabyte.
    pairs = zip((train, test), counts, strict=True)
    return tuple(split[stratified_order(split.labels.numpy())[:count]] for split, count in pairs)


def _load_full(name: str, root: str | os.PathLike | None, download: bool) -> tuple[Split, Split]:
    folder = _full_folder(root)
    try:
        _check_full(name, folder)
    except (DataNotFound, DataDamaged):
        if not download:
            raise
        _download(name, folder)
    reader = getattr(_import_torchvision().datasets, _TORCHVISION_NAME[name])
    return tuple(_as_split(reader(folder, train=train)) for train in (True, False))


def _full_folder(root: str | os.PathLike | None = None) -> Path:
    return Path(root or os.environ.get("QSAL_DATA") or _cache_folder()).expanduser()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache") / "qsal"


def _check_full(name: str, folder: Path) -> None:
    elsewhere = "" if folder == _full_folder() else f", root={str(folder)!r}"
    again = f"load_data({name!r}, size='full'{elsewhere}, download=True)"
    for file, checksum in _FULL_FILES[name].items():
        path = folder / file
        if not path.is_file():
            raise DataNotFound(
                f"The full {name} is not in {folder} ({file} is missing): download it there with {again}, "
                f"or set the environment variable QSAL_DATA (or root=...) to a folder that holds it."
            )
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != checksum:
                raise DataDamaged(
                    f"{path} is truncated or altered (its checksum is wrong): replace it, or get it again with {again}."
                )


def _download(name: str, folder: Path) -> None:
    datasets = _import_torchvision().datasets
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A neighbour of the final place, so that moving is a rename and an interrupted download leaves nothing behind.
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
            getattr(datasets, _TORCHVISION_NAME[name])(temporary, download=True)
            _check_full(name, Path(temporary))
            for file in _FULL_FILES[name]:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary) / file, folder / file)
    except (DataDamaged, DataNotFound) as error:
        raise DataNotFound(
            f"{name} could not be downloaded to {folder}: what came is incomplete or altered; try again later, or set "
            "QSAL_DATA to a folder that holds it."
        ) from error
    except (OSError, RuntimeError) as error:
        raise DataNotFound(
            f"{name} could not be downloaded to {folder} ({first_line(error)}): check the internet connection, the "
            f"free space, and whether the folder may be written to, or set QSAL_DATA to a folder that holds it."
        ) from error


def _import_torchvision() -> ModuleType:
    try:
        import torchvision
        import torchvision.datasets
        import torchvision.models
    # A torchvision built for another torch fails with a RuntimeError, "operator torchvision::nms does not exist", or
    # with an OSError about a library that cannot be loaded.
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"torchvision cannot be imported ({first_line(error)}): install torch and torchvision together, from the "
            f"same place, for example with `pip install --upgrade --force-reinstall torch torchvision`."
        ) from error
    return torchvision


def _as_split(dataset: object) -> Split:
    images = torch.as_tensor(dataset.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.as_tensor(dataset.targets, dtype=torch.int64))


def _is(x: object, dtype: torch.dtype) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == dtype
