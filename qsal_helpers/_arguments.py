"""Checks that several modules make on what they are given.

>>> check_whole(0, "batch_size")
Traceback (most recent call last):
ValueError: batch_size must be a whole number of at least 1; got 0
"""

import math
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def check_model(model: nn.Module, name: str = "model") -> None:
    """Raise `TypeError` unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be an nn.Module; got {_kind(model)}")


def check_whole(number: int, name: str, low: int = 1, high: int = 2**31 - 1) -> None:
    """Raise `ValueError` unless `number` is an int from `low` to `high`."""
    whole = isinstance(number, int) and not isinstance(number, bool)
    if not whole or not low <= number <= high:
        limit = f"of at least {low}" if not whole or number < low else f"of at most {high}"
        kind = "" if whole else ", which is no Python int"
        raise ValueError(f"{name} must be a whole number {limit}; got {_shown(number)}{kind}")


def check_seed(seed: int) -> None:
    """Raise `ValueError` unless `seed` is one that torch takes."""
    check_whole(seed, "seed", 0, 2**63 - 1)


def check_number(number: float, name: str, low: float = 0.0, high: float = math.inf) -> None:
    """Raise `ValueError` unless `number` is a finite number from `low` to `high`."""
    if isinstance(number, bool) or not isinstance(number, Real) or not low <= number <= high or math.isinf(number):
        limits = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a finite number {limits}; got {_shown(number)}")


def check_flag(flag: bool, name: str) -> None:
    """Raise `TypeError` unless `flag` is True or False."""
    if not isinstance(flag, bool):
        raise TypeError(f"{name} must be True or False; got {_shown(flag)}")


def check_choice(value: str, name: str, choices: Sequence[str]) -> None:
    """Raise `ValueError` unless `value` is one of the texts in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {_shown(value)}")


def check_path(path: str | os.PathLike) -> Path:
    """Return `path` as a `Path`; raise `TypeError` or `ValueError` unless it can name a file."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a text or a pathlib.Path; got {_shown(path)}")
    if not Path(path).name or "\0" in str(path):
        raise ValueError(f"path must name a file; got {_shown(path)}")
    return Path(path)


def check_floats(x: Tensor, name: str) -> None:
    """Raise `TypeError` unless `x` is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, as data.normalise makes them; got {described(x)}")


def check_images(x: Tensor, name: str = "x") -> None:
    """Raise `TypeError` or `ValueError` unless `x` is a floating-point tensor ``(B, C, H, W)``."""
    check_floats(x, name)
    if x.dim() != 4:
        raise ValueError(f"{name} must be images (B, C, H, W); got shape {tuple(x.shape)}")


def check_device(device: str | torch.device) -> torch.device:
    """Return `device` as torch knows it; raise `ValueError` unless this machine has it."""
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # torch raises a different kind for each way in which a device can be unusable
        raise ValueError(f"this machine has no device {device!r}: {first_line(error)}") from error


def described(value: Any) -> str:
    """Return the dtype and shape of a tensor or an array, and of anything else its type.

    >>> described(torch.zeros(2, 3))
    'float32 (2, 3)'
    """
    if not isinstance(value, Tensor | np.ndarray):
        return _kind(value)
    kind = "" if isinstance(value, Tensor) else "a NumPy array of "
    return f"{kind}{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).partition("\n")[0].rstrip(".")


def _kind(value: Any) -> str:
    return type(value).__name__


def _shown(value: Any) -> str:
    """Return a value as it is typed if that is short, and else its type."""
    text = repr(value)
    return text if len(text) < 60 and "\n" not in text else f"a {_kind(value)}"
