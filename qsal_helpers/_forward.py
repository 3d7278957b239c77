"""How the package calls a model: what it must return, and the mode in which it is asked."""

import contextlib
import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ._arguments import check_floats, check_model

_T = TypeVar("_T")


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
        kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {x.dtype}
        if kinds and not torch.is_autocast_enabled(x.device.type):
            given = str(x.dtype).removeprefix("torch.")
            error.add_note(
                f"images are {given} here, and the model has {', '.join(map(str, kinds))}: convert one of them"
            )
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


def copied(thing: _T) -> _T:
    """Return a deep copy of a model, or of what holds one; where torch cannot make it, raise `ValueError`."""
    try:
        return copy.deepcopy(thing)
    except RuntimeError as error:
        raise ValueError(
            f"{type(thing).__name__} cannot be copied; if a model is pruned or weight-normed, make that permanent "
            "first, for instance with torch.nn.utils.prune.remove; if it stores what it computes, call it once under "
            "torch.no_grad()"
        ) from error


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in which a divergence can be computed: a small one is lost in the rounding of bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode for a while, and then every module back in the mode it had.

    Not for several threads that share one model: each would put back what another has set.

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
