"""How the package calls a model: what it must return, and the mode in which it is asked."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ._arguments import check_floats, check_model


def logits_of(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return what `model` makes of `x`; raise `ValueError` unless that is logits, ``(B, classes)``.

    With the labels `y`, also if one of them has no logit.
    """
    check_model(model)
    check_floats(x, "x")
    # A copy, because a first layer that works in place would change the caller's images.
    try:
        logits = model(x.clone())
    except RuntimeError as error:
        if "view size is not compatible" in str(error):
            error.add_note("images are channels_last here: in forward, write x.flatten(1) instead of x.view(...)")
        raise
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(
            f"the model must return logits of shape (B, classes); it returned {shape} (wrap it in a module that does)"
        )
    # On a GPU reading the labels would stall the queue.
    if y is not None and y.device.type == "cpu" and len(y) and (last := int(y.max())) >= logits.shape[1]:
        raise ValueError(f"labels up to {last} need a model with {last + 1} outputs; this one has {logits.shape[1]}")
    return logits


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in which a divergence can be computed: a small one is lost in the rounding of bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode for a while, and then every module back in the mode it had.

    Examples
    --------
    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3).eval())
    >>> with evaluation_mode(net):
    ...     [m.training for m in net]
    [False, False]
    >>> [m.training for m in net]
    [True, False]
    """
    check_model(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
