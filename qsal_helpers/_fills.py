"""What stands in for pixels that are hidden: in training, in the metrics and as a baseline the same."""

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
