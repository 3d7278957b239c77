"""What stands in for pixels that are hidden: in training, in the metrics and as a baseline the same."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def black(x: Tensor) -> Tensor:
    """Return the least value of each channel of the images x, ``(1, C, 1, 1)``: black, once they are normalised.

    Examples
    --------
    >>> import torch
    >>> black(torch.tensor([[[[-1.0, 2.0]]], [[[0.0, 1.0]]]])).tolist()
    [[[[-1.0]]]]
    """
    return x.amin((0, 2, 3), keepdim=True)


def blurred(x: Tensor) -> Tensor:
    """Return x ``(B, C, H, W)``, each pixel the mean of the 7 x 7 around it, as far as these lie in the image."""
    return F.avg_pool2d(x, 7, stride=1, padding=3, count_include_pad=False)


def as_pixels(value: Any, x: Tensor, name: str, names: str = "") -> Tensor:
    """Return a number, one number a channel, an image or images as a tensor that broadcasts against x ``(B, C, H, W)``.

    Raises
    ------
    ValueError, which also lists the texts in `names` that the caller understands, for anything else.

    Examples
    --------
    >>> import torch
    >>> as_pixels([0.5, 1.0], torch.zeros(4, 2, 8, 8), "fill").shape
    torch.Size([2, 1, 1])
    """
    try:
        values = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        values = values.view(-1, 1, 1) if values.dim() == 1 else values
        values.expand_as(x)
    except (TypeError, ValueError, RuntimeError):
        given = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
        raise ValueError(
            f"{name} must be {names}a number, one number for each of the {x.shape[1]} channels, or an image or images "
            f"that fit {tuple(x.shape)}; got {given}"
        ) from None
    return values
