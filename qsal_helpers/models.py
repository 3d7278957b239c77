"""The networks of the course, built by name."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ._arguments import check_whole
from .data import _import_torchvision


def build_model(name: str, in_channels: int = 1, num_classes: int = 10, image_size: int | None = None) -> nn.Module:
    """Return an untrained network.

    Every activation is an ``nn.ReLU`` module of its own, so that `quantize` can give each its own alpha. Only in
    "resnet18" the two activations of a block share one module, as torchvision wrote it, and so one alpha.

    Parameters
    ----------
    name : "lenet5" (LeCun et al. 1998, with ReLU), "cnn" (the lessons' default), "vgg_small",
        "resnet20" (He et al. 2016, for 32x32 images), "resnet18" (torchvision's, with a stem for small images), or
        "guided_paper_cnn" (the network of Ismail et al. 2021 for MNIST).
    in_channels : 1 for grey images, 3 for colour.
    num_classes : the number of outputs.
    image_size : height and width in pixels; by default 28 for one channel and 32 otherwise.

    Returns
    -------
    A module that maps ``(B, in_channels, image_size, image_size)`` to logits ``(B, num_classes)``. Its `recipe` holds
    the arguments, and its `input_shape` the shape of one image.

    Raises
    ------
    ValueError for an unknown name, or an image too small for the network; ImportError if "resnet18" is asked for and
    torchvision cannot be imported.

    Examples
    --------
    >>> model = build_model("lenet5")
    >>> sum(p.numel() for p in model.parameters())
    61706
    """
    if not isinstance(name, str) or name not in _BUILDERS:
        raise ValueError(f"there is no model {name!r}; choose one of {', '.join(_BUILDERS)}")
    check_whole(in_channels, "in_channels", high=4096)
    size = (28 if in_channels == 1 else 32) if image_size is None else image_size
    check_whole(num_classes, "num_classes", high=100_000)
    check_whole(size, "image_size", high=1024)
    if size < 16:
        raise ValueError(f"images of {size} x {size} pixels are too small; these networks need at least 16 x 16")
    model = _BUILDERS[name](in_channels, num_classes, size)
    model.recipe = {"name": name, "in_channels": in_channels, "num_classes": num_classes, "image_size": size}
    model.input_shape = (in_channels, size, size)
    return model


def _lenet5(in_channels: int, num_classes: int, size: int) -> nn.Module:
    # LeNet saw 32x32 images; padding brings the 28x28 of MNIST there.
    padding = 2 if size == 28 else 0
    side = ((size + 2 * padding - 4) // 2 - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 6, 5, padding=padding),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * side * side, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, num_classes),
        )
    )


def _cnn(in_channels: int, num_classes: int, size: int) -> nn.Module:
    side = size // 4
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 24, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(24),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(24, 48, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(48),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(48, 48, 3, padding=1, bias=False),
            bn3=nn.BatchNorm2d(48),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(48 * side * side, 128, bias=False),
            bn4=nn.BatchNorm1d(128),
            relu4=nn.ReLU(),
            fc2=nn.Linear(128, num_classes),
        )
    )


def _vgg_small(in_channels: int, num_classes: int, size: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for i, width in enumerate((64, 64, 128, 128, 256, 256), start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
        if i % 2 == 0:
            layers[f"pool{i // 2}"] = nn.MaxPool2d(2)
        channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(256, num_classes)
    return nn.Sequential(layers)


def _guided_paper_cnn(in_channels: int, num_classes: int, size: int) -> nn.Module:
    side = (size - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            dropout1=nn.Dropout(0.25),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * side * side, 128),
            relu3=nn.ReLU(),
            dropout2=nn.Dropout(0.5),
            fc2=nn.Linear(128, num_classes),
        )
    )


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.stride, self.extra_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.extra_channels:
            # He et al.'s option A: subsample, and pad the new channels with zeros. No parameters to quantize.
            pad = self.extra_channels // 2
            x = torch.nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, pad, pad))
        return self.relu2(y + x)


def _resnet20(in_channels: int, num_classes: int, size: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu1=nn.ReLU()
    )
    channels = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(3):
            layers[f"block{stage}_{block + 1}"] = _ResidualBlock(channels, width, 2 if width > channels else 1)
            channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(64, num_classes)
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _resnet18(in_channels: int, num_classes: int, size: int) -> nn.Module:
    model = _import_torchvision().models.resnet18(num_classes=num_classes)
    # The usual 7x7 stride-2 stem and max-pool would leave a 32x32 image 8x8 pixels before the first block.
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


_BUILDERS = {
    "lenet5": _lenet5,
    "cnn": _cnn,
    "vgg_small": _vgg_small,
    "resnet20": _resnet20,
    "resnet18": _resnet18,
    "guided_paper_cnn": _guided_paper_cnn,
}
