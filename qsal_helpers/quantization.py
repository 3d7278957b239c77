"""Quantizers, and the conversion of a model to low precision.

Every quantizer here is a *fake* quantizer: it returns float32 numbers that lie on a grid of at most
``2**bits`` levels, so that training can go on with gradients. `export` turns the same numbers into integers.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import check_choice, check_flag, check_floats, check_model, check_whole, first_line
from ._forward import copied, evaluation_mode

SCHEMES = ("sawb", "dorefa", "minmax")
ALPHA_MIN = 0.01
# Choi et al. fitted these by regression over several weight distributions; bits -> (c1, c2).
SAWB_COEFFICIENTS = {2: (3.12, 2.064), 3: (7.509, 6.892), 4: (12.68, 12.80)}


def check_bits(bits: int) -> int:
    """Return `bits` if it is an int from 2 to 8, or 32 for "not quantized"; raise `ValueError` otherwise."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not (2 <= bits <= 8 or bits == 32):
        raise ValueError(f"bits must be an int from 2 to 8, or 32 for 'not quantized'; got {bits!r}")
    return bits


def _as_tensor(value: float | Tensor, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor; got {value!r}") from error


# ---------------------------------------------------------------- the uniform quantizer


class _QuantizeUniform(torch.autograd.Function):
    # Not built from torch.clamp: its gradient at the bounds is 1 before torch 2.15 and 0 from then on,
    # which at 2 bits would silence half of all levels.
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        step = (high - low) / levels
        codes = torch.round((torch.maximum(x, low) - low) / step)
        # Held here and not before: in bfloat16 the division can end half a level too high.
        return low + step * codes.clamp_(max=levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grad, 0), None, None, None


def quantize_uniform(x: Tensor, bits: int, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Round `x` to the nearest of ``2**bits`` evenly spaced levels from `low` to `high`.

    Values outside the range are clipped to it. The gradient is the straight-through estimator
    (Bengio et al. 2013): 1 where ``low <= x <= high``, bounds included, and 0 outside. The range itself has no
    gradient; for a clip that learns there is `pact`. Ties go to the even level.

    Parameters
    ----------
    x : floating-point tensor of any shape.
    bits : 2 to 8, or 32, which returns `x` itself.
    low, high : the range, ``low < high``; numbers, or tensors that broadcast against `x` (one range a channel).

    Returns
    -------
    Tensor of the shape and dtype of `x`; NaN stays NaN.

    Raises
    ------
    ValueError for bits outside 2 to 8 and 32, for ``low >= high`` or a range that is not finite or too narrow for the
    dtype, and for bounds that do not broadcast to the shape of `x`; TypeError if `x` is not floating point.

    Examples
    --------
    >>> quantize_uniform(torch.tensor([-0.2, 0.1, 0.6, 3.0]), bits=2, low=0.0, high=1.0)
    tensor([0.0000, 0.0000, 0.6667, 1.0000])
    """
    check_floats(x, "x")
    if check_bits(bits) == 32:
        return x
    low, high = (_as_tensor(v, n, x.dtype, x.device) for v, n in ((low, "low"), (high, "high")))
    try:
        low.expand_as(x), high.expand_as(x)
    except RuntimeError:
        raise ValueError(f"low and high must broadcast to the shape of x, {tuple(x.shape)}") from None
    levels = 2**bits - 1
    step = (high - low) / levels
    if not bool(((step > 0) & (step < math.inf)).all()):
        raise ValueError("low must be below high; got a range that is empty, not finite or too narrow for the dtype")
    return _QuantizeUniform.apply(x, low, high, levels)


# ---------------------------------------------------------------- PACT


class _Pact(torch.autograd.Function):
    # On a CPU, alpha is read as a Python number: the fused kernels for scalar bounds make one pass over memory
    # where broadcasting a tensor makes two. On a GPU reading it would stall the queue, so it stays a tensor.
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, bits: int) -> Tensor:
        bound = alpha.to(x.dtype).reshape(())
        ctx.save_for_backward(x, bound)
        ctx.alpha_shape, ctx.alpha_dtype = alpha.shape, alpha.dtype
        if x.is_cuda:
            y = x.clamp(min=0).minimum(bound)
        else:
            bound = bound.item()
            y = x.clamp(0, bound)
        if bits == 32:
            return y
        step = bound / (2**bits - 1)
        return y.div_(step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, bound = ctx.saved_tensors
        grad_x = grad_alpha = None
        # Gradients are on here only with create_graph: then the result must be differentiable itself, which the
        # kernels of the other branch are not.
        if x.is_cuda or torch.is_grad_enabled():
            if ctx.needs_input_grad[0]:
                grad_x = torch.where((x > 0) & (x < bound), grad, 0)
            if ctx.needs_input_grad[1]:
                grad_alpha = torch.where(x >= bound, grad, 0).sum()
        else:
            # alpha's gradient first, so that the gradient of x is still in the cache when the layer before reads it.
            if ctx.needs_input_grad[1]:
                # This kernel keeps the gradient where x > threshold: the number below alpha turns > into >=.
                below = torch.nextafter(bound, torch.zeros_like(bound)).item()
                grad_alpha = torch.ops.aten.threshold_backward(grad, x, below).sum()
            if ctx.needs_input_grad[0]:
                # Laid out like x, whatever the layout of grad: batch-norm's backward is 5 times slower on a mixture.
                grad_x = torch.empty_like(x)
                torch.ops.aten.hardtanh_backward.grad_input(grad, x, 0.0, bound.item(), grad_input=grad_x)
        if grad_alpha is not None:
            grad_alpha = grad_alpha.to(ctx.alpha_dtype).reshape(ctx.alpha_shape)
        return grad_x, grad_alpha, None


def pact(x: Tensor, alpha: float | Tensor, bits: int) -> Tensor:
    """Clip `x` to ``[0, alpha]`` and round it to ``2**bits`` levels: PACT (Choi et al. 2018, equations 1 and 2).

    ``y = clip(x, 0, alpha)``; ``y_q = round(y * (2**bits - 1) / alpha) * alpha / (2**bits - 1)``.

    Gradients as in the paper's equation 3: ``dy_q/dx`` is 1 on ``0 < x < alpha`` and 0 elsewhere;
    ``dy_q/dalpha`` is 1 where ``x >= alpha`` and 0 below (the rounding counts as the identity).

    Parameters
    ----------
    x : floating-point tensor of any shape.
    alpha : the clipping level, above 0; a number or a tensor with one element, in units of `x`.
    bits : 2 to 8, or 32 to clip without rounding.

    Raises
    ------
    ValueError for alpha not above 0 (looked at on the CPU only: a GPU would have to wait for it) or with more than one
    element, or for bits out of range.

    Examples
    --------
    >>> alpha = torch.tensor(2.0, requires_grad=True)
    >>> y = pact(torch.tensor([-1.0, 0.5, 1.2, 2.0, 9.0]), alpha, bits=2)
    >>> y
    tensor([0.0000, 0.6667, 1.3333, 2.0000, 2.0000], grad_fn=<_PactBackward>)
    >>> y.sum().backward()
    >>> alpha.grad
    tensor(2.)
    """
    check_floats(x, "x")
    check_bits(bits)
    # A number takes the precision of x; by itself it would become float32, whatever x is.
    alpha = _as_tensor(alpha, "alpha", None if isinstance(alpha, Tensor) else x.dtype, x.device)
    if not alpha.is_floating_point():
        alpha = alpha.to(x.dtype)
    if alpha.numel() != 1:
        raise ValueError(f"alpha must be one number; got a tensor of shape {tuple(alpha.shape)}")
    if not x.is_cuda and not 0 < alpha.item() < math.inf:
        raise ValueError(f"alpha must be a finite number above 0; got {alpha.item()}")
    return _Pact.apply(x, alpha, bits)


class PACT(nn.Module):
    """An activation that learns where to clip, and rounds: `pact` with a learned ``alpha``.

    ``alpha`` is an ordinary parameter. Before each use it is put back to at least 0.01,
    so that no optimizer can push it to zero or below, where the gradient could not bring it back.

    Parameters
    ----------
    bits : 2 to 8, or 32 to clip without rounding.
    alpha : the starting value. ``None`` takes `default_alpha`. The paper starts at 10 and trains long; see there.

    Examples
    --------
    >>> layer = PACT(bits=2, alpha=3.0)
    >>> layer(torch.tensor([-1.0, 1.2, 7.0])).tolist()
    [0.0, 1.0, 3.0]
    """

    def __init__(self, bits: int, alpha: float | None = None) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        try:
            value = default_alpha(bits) if alpha is None else float(alpha)
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(f"alpha must be a finite number above 0; got {alpha!r}")
        self.alpha = nn.Parameter(torch.tensor(value))

    def forward(self, input: Tensor) -> Tensor:
        """Return `pact` of `input`, of the same shape."""
        self.alpha.data.clamp_(min=ALPHA_MIN)
        check_floats(input, "input")
        # Not through `pact`: an alpha that became NaN in training must reach the loss, where `fit` reports it.
        return _Pact.apply(input, self.alpha, self.bits)

    def extra_repr(self) -> str:  # noqa: D102
        return f"bits={self.bits}, alpha={self.alpha.item():.3g}"


def default_alpha(bits: int) -> float:
    """Return the alpha that a new `PACT` starts from, for activations of about unit variance (after batch-norm).

    Our choice: the paper starts at 10 and trains for 200 epochs. With the few epochs of a lesson a 2-bit layer
    whose first level lies at 3.3 begins almost dead, so fewer bits start from a tighter clip.

    Examples
    --------
    >>> [default_alpha(bits) for bits in (2, 4, 8)]
    [2.0, 4.0, 6.0]
    """
    return float(min(check_bits(bits), 6))


# ---------------------------------------------------------------- weights


def weight_codes(w: Tensor, bits: int, scheme: str = "sawb", per_channel: bool = False) -> tuple[Tensor, Tensor]:
    """Return the integers and the step whose product is the quantized weight.

    ``dorefa``, and ``sawb`` up to 4 bits, have ``2**bits`` levels without a zero, so the integers are odd, from
    ``-(2**bits - 1)`` to ``2**bits - 1``. ``minmax``, and ``sawb`` above 4 bits, have ``2**bits - 1`` levels
    with a zero, from ``-(2**(bits-1) - 1)`` to ``2**(bits-1) - 1``.

    Returns
    -------
    codes : float tensor of whole numbers, of the shape of `w`.
    step : tensor, one number, or ``(C, 1, ...)`` with `per_channel`; above 0.

    Raises
    ------
    TypeError and ValueError as `quantize_weight`; ValueError for 32 bits, which have no codes.

    Examples
    --------
    >>> codes, step = weight_codes(torch.tensor([-0.9, -0.1, 0.2, 1.0]), bits=2, scheme="dorefa")
    >>> codes.tolist()
    [-3.0, -1.0, 1.0, 3.0]
    """
    _check_weight(w, bits, scheme, per_channel)
    if bits == 32:
        raise ValueError("a weight of 32 bits is not quantized, so it has no codes")
    with torch.no_grad():
        if scheme == "dorefa":
            w = _dorefa_transform(w, per_channel)
        scale = weight_scale(w, bits, scheme, per_channel)
        if _has_zero(bits, scheme):
            top = 2 ** (bits - 1) - 1
            return (w / scale).clamp_(-1, 1).mul_(top).round_(), scale / top
        top = 2**bits - 1
        # In whole levels 0..top first, then to odd integers around zero.
        codes = (w / scale).clamp_(-1, 1).add_(1).mul_(top / 2).round_()
        return codes.mul_(2).sub_(top), scale / top


def weight_scale(w: Tensor, bits: int, scheme: str = "sawb", per_channel: bool = False) -> Tensor:
    """Return the largest weight that the grid can express.

    ``minmax``: the largest magnitude. ``dorefa``: 1. ``sawb`` (Choi et al. 2019):
    ``c1 * sqrt(E[w^2]) - c2 * E|w|``, with c1 and c2 fitted for each bit width. The formula is held between 0.2 and
    1 times the largest magnitude, and replaced by the largest magnitude above 4 bits: there it is a small difference
    of large numbers, turns negative on trained layers, and destroys the network.

    Raises
    ------
    TypeError and ValueError as `quantize_weight`.

    Examples
    --------
    >>> weight_scale(torch.tensor([-0.5, 0.25]), bits=8, scheme="minmax")
    tensor(0.5000)
    """
    _check_weight(w, bits, scheme, per_channel)
    largest = _largest(w, per_channel)
    if scheme == "dorefa":
        return torch.ones_like(largest)
    if scheme == "sawb" and bits in SAWB_COEFFICIENTS:
        c1, c2 = SAWB_COEFFICIENTS[bits]
        axes, number = (tuple(range(1, w.dim())), w[0].numel()) if per_channel else (None, w.numel())
        norm = torch.linalg.vector_norm(w, dim=axes, keepdim=per_channel)
        fitted = c1 * norm / math.sqrt(number) - c2 * w.abs().mean(axes, keepdim=per_channel)
        return torch.minimum(torch.maximum(fitted, 0.2 * largest), largest)
    return largest


def _largest(w: Tensor, per_channel: bool) -> Tensor:
    """Return the largest magnitude, held above 0, so that weights of 0 divide by no 0."""
    largest = w.abs().amax(tuple(range(1, w.dim())), keepdim=True) if per_channel else w.abs().max()
    # In float16 the root alone is above the weights of a wide layer.
    return largest.clamp(min=min(torch.finfo(w.dtype).tiny ** 0.5, 1e-4))


def _check_weight(w: Tensor, bits: int, scheme: str, per_channel: bool) -> None:
    check_floats(w, "w")
    check_bits(bits)
    check_choice(scheme, "scheme", SCHEMES)
    if w.numel() == 0:
        raise ValueError("w is empty: there is no weight to quantize")
    check_flag(per_channel, "per_channel")
    if per_channel and w.dim() < 2:
        raise ValueError(f"per_channel needs a weight of at least 2 axes; got shape {tuple(w.shape)}")


def _has_zero(bits: int, scheme: str) -> bool:
    return scheme == "minmax" or (scheme == "sawb" and bits not in SAWB_COEFFICIENTS)


def _dorefa_transform(w: Tensor, per_channel: bool) -> Tensor:
    squashed = w.clone().tanh_()  # in place on a copy, because torch.tanh can lose the strides of w
    return squashed / _largest(squashed.detach(), per_channel)


class _StraightThrough(torch.autograd.Function):
    # w + (quantized - w).detach() would be shorter, but float addition moves the result off the grid.
    @staticmethod
    def forward(ctx: Any, w: Tensor, codes: Tensor, step: Tensor) -> Tensor:
        # A fresh tensor keeps the strides of w. A view would not where a channel count is 1, and the convolution
        # would fall back from channels_last, at twice the time.
        return codes * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def quantize_weight(w: Tensor, bits: int, scheme: str = "sawb", per_channel: bool = False) -> Tensor:
    """Fake-quantize a weight tensor; the gradient goes straight through the rounding and the clip.

    For "dorefa" it goes through the tanh, too, whose largest value counts as constant.

    Parameters
    ----------
    w : floating-point tensor; the first axis is the output channel. Not empty.
    bits : 2 to 8, or 32, which returns `w` itself.
    scheme : "sawb" (default; Choi et al. 2019), "dorefa" (Zhou et al. 2016, the weights of the PACT paper:
        rescales to [-1, 1], so it leans on batch-norm) or "minmax" (symmetric, up to the largest magnitude).
    per_channel : one scale for each output channel instead of one for the tensor.

    Returns
    -------
    Tensor of the shape and dtype of `w`. A NaN in `w` makes every weight of its scale NaN, and so does an infinity,
    but for "dorefa", whose tanh makes it a 1.

    Raises
    ------
    TypeError if `w` is not floating point; ValueError for bits outside 2 to 8 and 32, for an unknown scheme, for an
    empty `w`, and for `per_channel` with fewer than two axes.

    Examples
    --------
    >>> quantize_weight(torch.tensor([-1.0, -0.2, 0.4, 1.0]), bits=2, scheme="minmax").tolist()
    [-1.0, -0.0, 0.0, 1.0]
    """
    _check_weight(w, bits, scheme, per_channel)
    if bits == 32:
        return w
    codes, step = weight_codes(w.detach(), bits, scheme, per_channel)
    if scheme == "dorefa":
        w = _dorefa_transform(w, per_channel)
    return _StraightThrough.apply(w, codes, step)


class _QuantWeight:
    weight_bits: int = 32
    activation_bits: int = 32
    scheme: str = "sawb"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}, scheme={self.scheme}"


class QuantConv2d(_QuantWeight, nn.Conv2d):
    """A convolution whose weight is quantized each time it is used. Made by `quantize`."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input`, ``(B, C, H, W)``, with the quantized weight."""
        return self._conv_forward(input, quantize_weight(self.weight, self.weight_bits, self.scheme), self.bias)


class QuantLinear(_QuantWeight, nn.Linear):
    """A linear layer whose weight is quantized each time it is used. Made by `quantize`."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `input`, ``(..., in_features)``, with the quantized weight."""
        return F.linear(input, quantize_weight(self.weight, self.weight_bits, self.scheme), self.bias)


# ---------------------------------------------------------------- precision


@dataclass(frozen=True)
class Precision:
    """Bits for the weights and the activations of a network, layer by layer.

    Parameters
    ----------
    weights, activations : bits of the body. A pair means first half and second half of the network, by order of
        execution (our reading of "mixed 4/2-bit"; the papers do not say which layers get which).
    first, last : bits of the first layer's weights, and of the last layer's weights and input. 8 by default:
        a 2-bit first layer costs 8 points of CIFAR-10 accuracy in the PACT paper's table 2.
    layers : a module's name -> its own (weight bits, activation bits); wins over everything else.

    32 bits leave weights as they are; activations of 32 bits are not rounded, but PACT still clips them, from
    `default_alpha` on. The activation bits of a layer are those of its **input**, because a product costs
    (weight bits x input bits). The network's own input is an 8-bit image and is not quantized again.

    Examples
    --------
    >>> Precision.parse("w4a2")
    Precision(weights=4, activations=2, first=8, last=8, layers={})
    >>> Precision.parse("mixed-4/2").weights
    (4, 2)
    >>> str(Precision(2, 2))
    'w2a2'
    """

    weights: int | tuple[int, int]
    activations: int | tuple[int, int]
    first: int = 8
    last: int = 8
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for bits in (self.weights, self.activations):
            for one in bits if isinstance(bits, tuple) else (bits,):
                check_bits(one)
            if isinstance(bits, tuple) and len(bits) != 2:
                raise ValueError(f"a tuple of bits is (first half, second half); got {bits!r}")
        check_bits(self.first)
        check_bits(self.last)
        if not isinstance(self.layers, Mapping):
            raise TypeError(f"layers must map names to (weight bits, activation bits); got {self.layers!r}")
        for name, pair in self.layers.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"layers[{name!r}] must be (weight bits, activation bits); got {pair!r}")
            check_bits(pair[0])
            check_bits(pair[1])

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read "fp32", "w4a4", "w2a2", "w4a2", "mixed-4/2" and the like; raise `ValueError` for anything else."""
        if text == "fp32":
            return cls(32, 32, first=32, last=32)
        if match := re.fullmatch(r"w([0-9]+)a([0-9]+)", str(text)):
            return cls(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"mixed-([0-9]+)/([0-9]+)", str(text)):
            pair = (int(match[1]), int(match[2]))
            return cls(pair, pair)
        raise ValueError(f"a precision reads like 'fp32', 'w4a4', 'w4a2' or 'mixed-4/2'; got {text!r}")

    def __str__(self) -> str:
        if (self.weights, self.activations, self.first, self.last) == (32, 32, 32, 32):
            name = "fp32"
        elif isinstance(self.weights, tuple) and self.weights == self.activations:
            name = f"mixed-{self.weights[0]}/{self.weights[1]}"
        else:
            name = f"w{self.weights}a{self.activations}"
        ends = "" if name == "fp32" or (self.first, self.last) == (8, 8) else f" ends {self.first}/{self.last}"
        return name + ends + (f" + {len(self.layers)} own" if self.layers else "")

    def resolve(self, names: list[str]) -> dict[str, tuple[int, int]]:
        """Return layer name -> (weight bits, input activation bits) for layers in order of execution.

        Raises
        ------
        ValueError if the precision names a layer that is not among `names`.

        Examples
        --------
        >>> Precision.parse("mixed-4/2").resolve(["a", "b", "c", "d"])
        {'a': (8, 8), 'b': (4, 4), 'c': (2, 2), 'd': (8, 8)}
        """
        unknown = set(self.layers) - set(names)
        if unknown:
            raise ValueError(f"precision names layers the model does not have: {sorted(unknown)}; it has {names}")
        bits = {}
        for i, name in enumerate(names):
            half = int(i >= math.ceil(len(names) / 2))
            pair = tuple(b[half] if isinstance(b, tuple) else b for b in (self.weights, self.activations))
            if i == 0:
                pair = (self.first, 32 if self.first == 32 else 8)
            if i == len(names) - 1 and len(names) > 1:
                pair = (self.last, self.last)
            bits[name] = tuple(self.layers.get(name, pair))
        return bits


# ---------------------------------------------------------------- a model's conversion

_RELUS = (nn.ReLU, nn.ReLU6)
_LEAVES = (nn.Conv2d, nn.Linear, *_RELUS, PACT)
# What may hand on the same numbers in the same place of memory, in another shape.
_VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity)
_VIEW_CALLS = {torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze}
_VIEW_CALLS |= {torch.chunk, torch.split, operator.getitem, "flatten", "view", "reshape", "permute", "transpose"}
_VIEW_CALLS |= {"contiguous", "squeeze", "unsqueeze", "chunk", "split"}
# What hands numbers on as they are, or their means: the input of a layer behind it is as rounded as its own.
_PASSING = (*_VIEWS, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_PASSING += (nn.Dropout, nn.Dropout2d, nn.ZeroPad2d)
_PASSING_CALLS = _VIEW_CALLS | {torch.cat, torch.mean, "mean", F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}
_PASSING_CALLS |= {F.adaptive_max_pool2d, F.dropout, F.pad, torch.concat, torch.concatenate}


class _Proxy(torch.fx.Proxy):
    def __iadd__(self, other: Any) -> torch.fx.Proxy:  # torch.fx would write a += b down as a sum that leaves a alone
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(torch.fx.Tracer):
    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        # As `model(x)` calls it: further arguments have their defaults, and branches on them go the way they then go.
        arguments = list(inspect.signature(root_fn).parameters.values())[1:]
        if sum(argument.default is argument.empty for argument in arguments) != 1:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        return super().create_args_for_root(lambda root, x: root_fn(root, x), is_module, concrete_args)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _LEAVES) or super().is_leaf_module(module, name)


def _to_trace(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode.

    A forward that keeps something would keep the tracer's stand-ins; a head that only training has is no last layer.
    """
    return copied(model).eval()


def execution_order(model: nn.Module) -> list[str]:
    """Return the names of the Conv2d, Linear and ReLU modules in the order in which the model calls them.

    That of evaluation mode. A module that is called twice stands twice. If the model's `forward` cannot be traced (it
    branches on its data), the order of definition is used, with a warning.

    Raises
    ------
    ValueError if `forward` calls a ReLU as a function, which no module swap can reach, or if a ReLU with
    ``inplace=True`` overwrites a tensor that something else reads, too.

    Examples
    --------
    >>> execution_order(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    ['0', '1', '2']
    """
    check_model(model)
    working = _to_trace(model)
    try:
        graph = _Tracer().trace(working)
    except Exception as error:  # torch.fx raises many kinds, all meaning "not traceable"
        warnings.warn(
            f"{type(model).__name__} cannot be traced ({first_line(error)}), so its layers are taken in order of "
            "definition, the first and the last as the end layers, and ReLUs called as functions stay in float; "
            "Precision(layers=...) sets single layers",
            stacklevel=3,
        )
        return [name for name, module in model.named_modules() if isinstance(module, _LEAVES)]
    functions = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"}
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    if found := [node for node in calls if node.target in functions]:
        places = ", ".join(dict.fromkeys(map(_caller, found)))
        raise ValueError(
            f"{type(model).__name__} calls ReLU as a function {len(found)} times, in {places}; give each its own "
            "nn.ReLU() module, so that it can be replaced by PACT"
        )
    _refuse_overwriting(model, graph)
    modules = [node.target for node in graph.nodes if node.op == "call_module"]
    return [name for name in modules if isinstance(model.get_submodule(name), _LEAVES)]


def _caller(node: torch.fx.Node) -> str:
    """Return which forward calls a function: "Block.forward", or "forward" if it is the traced model's own."""
    stack = node.meta.get("nn_module_stack")
    return f"{list(stack.values())[-1][1].__name__}.forward" if stack else "forward"


def _refuse_overwriting(model: nn.Module, graph: torch.fx.Graph) -> None:
    """Raise `ValueError` if a ReLU with ``inplace=True`` overwrites a tensor that something else reads, too.

    What takes the ReLU's place overwrites nothing, so that reader would be given other numbers.
    """
    for node in graph.nodes:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        overwrites = isinstance(module, _RELUS) and getattr(module, "inplace", False)
        if overwrites and _read_elsewhere(model, node.all_input_nodes[0]):
            raise ValueError(
                f"{node.target} is nn.{type(module).__name__}(inplace=True) and overwrites a tensor that is read "
                "elsewhere, too; give it inplace=False"
            )


def _read_elsewhere(model: nn.Module, node: torch.fx.Node) -> bool:
    """Tell whether more than one node reads the numbers of `node`, be it through a view of them."""
    while len(node.users) == 1:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(module, _VIEWS) and (module is not None or node.target not in _VIEW_CALLS):
            return False
        node = node.all_input_nodes[0]
    return True


def quantize(
    model: nn.Module, precision: Precision | str, scheme: str = "sawb", alpha: float | None = None
) -> nn.Module:
    """Return a copy of `model` with quantized Conv2d and Linear layers and every ReLU replaced by `PACT`.

    The weights are kept, so the copy may be trained from scratch, go on from a trained model, or be used as it is (then
    `calibrate` it).
    The copy's `precision` and `scheme` hold what it was made with.
    A ReLU takes the activation bits of the next layer in order of execution. A ReLU module that is used at several
    places has one alpha for all of them, and the largest of their bits. Other activations stay as they are.

    Parameters
    ----------
    model : any module made of Conv2d, Linear, ReLU and layers without weights of their own (pooling, batch-norm, ...).
    precision : a `Precision`, or a text that `Precision.parse` reads, such as "w4a4".
    scheme : the weight quantizer, "sawb", "dorefa" or "minmax".
    alpha : where every PACT starts; ``None`` for `default_alpha`.

    Raises
    ------
    ValueError if there is nothing to quantize, if it is quantized already or cannot be copied, if a ReLU is called as a
    function or overwrites what another layer reads, or if a layer is of a class derived from Conv2d, Linear or ReLU.

    Warns
    -----
    If layers or other weights stay in float, or if a layer reads more bits than asked for, because its ReLU serves
    other layers as well or because something else than a ReLU comes before it; they are named, and `describe` counts
    the bits that they read.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> small = quantize(net, "w2a2")
    >>> [small[i].weight_bits for i in (0, 2, 4)], [small[i].bits for i in (1, 3)]
    ([8, 2, 8], [2, 8])
    """
    check_choice(scheme, "scheme", SCHEMES)
    check_model(model)
    if isinstance(precision, str):
        precision = Precision.parse(precision)
    if not isinstance(precision, Precision):
        raise TypeError(f"precision must be a Precision or a text like 'w4a4'; got {precision!r}")
    if any(isinstance(m, (PACT, QuantConv2d, QuantLinear)) for m in model.modules()):
        raise ValueError("this model is quantized already; call quantize on the float model it was made from")
    for name, kind in (("precision", Precision), ("scheme", str)):
        if not isinstance(getattr(model, name, None), kind | None):
            raise ValueError(f"{type(model).__name__} has a {name!r} of its own, where quantize puts its; rename it")
    order = execution_order(model)
    if foreign := [n for n in order if type(model.get_submodule(n)) not in (nn.Conv2d, nn.Linear, *_RELUS)]:
        kind = type(model.get_submodule(foreign[0])).__name__
        if nn.utils.parametrize.is_parametrized(model.get_submodule(foreign[0])):
            raise ValueError(
                f"layer {foreign[0]!r} is parametrized, as by weight_norm or spectral_norm, and quantize would "
                "lose that; make it permanent, with torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
            )
        raise ValueError(
            f"layer {foreign[0]!r} is a {kind}, derived from Conv2d, Linear or ReLU, and quantize would lose its "
            "changes; put an nn.Conv2d, nn.Linear or nn.ReLU in its place"
        )
    if patched := [n for n in order if "forward" in vars(model.get_submodule(n))]:
        raise ValueError(f"layer {patched[0]!r} has a forward of its own, which quantize would not reach; remove it")
    layers = [n for n in dict.fromkeys(order) if isinstance(model.get_submodule(n), (nn.Conv2d, nn.Linear))]
    if not layers or layers == [""]:
        raise ValueError(
            f"{type(model).__name__} has no Conv2d or Linear layer inside that quantize could convert; "
            "wrap a single layer in nn.Sequential"
        )
    bits = precision.resolve(layers)

    quantized = copied(model)
    quantized.precision, quantized.scheme = precision, scheme
    if all(b == 32 for pair in bits.values() for b in pair):
        return quantized
    for name, (weight_bits, activation_bits) in bits.items():
        layer = quantized.get_submodule(name)
        # The class alone is exchanged: every attribute of the layer stays, also those of later torch versions.
        layer.__class__ = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
        layer.weight_bits, layer.activation_bits, layer.scheme = weight_bits, activation_bits, scheme
    for relu, relu_bits in _relu_bits(model, order, bits).items():
        # Likewise: so it is reached under every name that it has, also in a list, and its hooks stay.
        activation, new = quantized.get_submodule(relu), PACT(relu_bits, alpha).to(next(quantized.parameters()))
        activation.__class__, activation.bits, activation.alpha = PACT, new.bits, new.alpha
    _heed_real_inputs(quantized)
    return quantized


def _heed_real_inputs(model: nn.Module) -> None:
    """Set each layer's activation bits to those that its input really has, and warn where others were asked for."""
    wide, narrow, floating = [], [], []
    for name, real in _input_bits(model).items():
        layer = model.get_submodule(name)
        asked = layer.activation_bits
        if real and real != asked:
            (floating if real == 32 else wide if real > asked else narrow).append(f"{name} ({asked} bits)")
        layer.activation_bits = real or max(asked, 8)  # an image has 8
    # A layer by its name; of a block that holds other layers, too, only the weights of its own.
    others = [
        f"{name}.{own}".lstrip(".") if list(module.children()) or not name else name
        for name, module in model.named_modules()
        if not isinstance(module, (QuantConv2d, QuantLinear))
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1
    ]
    for names, what in (
        (wide, "read more bits than asked for: their ReLU serves other layers, too; give each use its own nn.ReLU"),
        (
            narrow,
            "read fewer bits than asked for: their ReLU has those of the layer that follows it; give each use its own "
            "nn.ReLU",
        ),
        (
            floating,
            "read float numbers: put an nn.ReLU directly before each, after any sum; other functions do not round",
        ),
        (others, "stay in float: quantize converts the Conv2d and Linear layers that forward itself calls"),
    ):
        if names := list(dict.fromkeys(names)):
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            warnings.warn(f"{shown} of {type(model).__name__} {what}", stacklevel=3)


def _input_bits(model: nn.Module) -> dict[str, int]:
    """Return the bits of the numbers that each layer reads, 32 if nothing rounds them.

    The image does not count, for `quantize` leaves it as it is. A mean of rounded numbers counts as rounded. Of a model
    that cannot be traced nothing is known, unless there is no PACT in it: then only the first layer's image is rounded.
    """
    try:
        graph = _Tracer().trace(_to_trace(model))
    except Exception:  # torch.fx raises many kinds; execution_order has warned of it already
        layers = [name for name, module in model.named_modules() if isinstance(module, (QuantConv2d, QuantLinear))]
        return {} if any(isinstance(m, PACT) for m in model.modules()) else dict.fromkeys(layers[1:], 32)
    bits: dict[torch.fx.Node, int] = {}
    found: dict[str, int] = {}
    for node in graph.nodes:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        first = next(iter((*node.args, *node.kwargs.values())), []) if node.op != "output" else []
        sources = [bits.get(source, 32) for source in (first if isinstance(first, (list, tuple)) else [first])]
        read = max(sources, default=0)
        if isinstance(module, (QuantConv2d, QuantLinear)):
            found[node.target] = max(read, found.get(node.target, 0))
        if isinstance(module, PACT):
            bits[node] = module.bits
        elif isinstance(module, _PASSING) or (module is None and node.target in _PASSING_CALLS):
            bits[node] = read
        else:  # what is made of the image alone is still image
            image = not any(bits[source] for source in node.all_input_nodes)
            mixes = module is not None and any(p.dim() > 1 for p in module.parameters())
            bits[node] = 0 if image and not mixes else 32
    return found


def _relu_bits(model: nn.Module, order: list[str], bits: dict[str, tuple[int, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    following = list(bits.values())[-1][1]
    for name in reversed(order):
        if name in bits:
            following = bits[name][1]
        elif isinstance(model.get_submodule(name), _RELUS):
            found[name] = max(following, found.get(name, 0))
    return found


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor, quantile: float = 0.999) -> nn.Module:
    """Set every alpha of a quantized model from what its PACT layers see on `x`, and return the model.

    Needed when a trained float model is quantized without further training. Before further training it is optional:
    the study's networks that start from their twin do without.

    Parameters
    ----------
    x : a batch of normalised images, ``(B, C, H, W)``.
    quantile : which quantile of the positive activations becomes alpha; 1.0 is the largest one. A layer that is used
        several times gets the largest alpha that one of its uses asks for.

    Raises
    ------
    ValueError if the model is not quantized, if `x` or what a PACT layer sees of it is empty or not finite, or if
    `quantile` is out of range.

    Examples
    --------
    >>> net = quantize(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), "w8a8")
    >>> _ = nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
    >>> calibrate(net, torch.tensor([[1.0], [3.0]]), quantile=1.0)[1].alpha.item()
    3.0
    """
    check_model(model)
    if not isinstance(quantile, (int, float)) or not 0 < quantile <= 1:
        raise ValueError(f"quantile must be above 0 and at most 1; got {quantile!r}")
    check_floats(x, "x")
    if not x.numel() or not bool(x.isfinite().all()):
        raise ValueError("x is empty, or holds values that are infinite or not a number; alpha cannot be set from it")
    layers = [m for m in model.modules() if isinstance(m, PACT)]
    if not layers and not hasattr(model, "precision"):
        raise ValueError(f"{type(model).__name__} has no PACT layer to calibrate; call quantize first")
    seen: set[PACT] = set()

    def set_alpha(layer: PACT, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        (given,) = (*inputs, *named.values())
        positive = given[given > 0].float().cpu().numpy()
        if not bool(given.isfinite().all()):
            name = next(name for name, module in model.named_modules() if module is layer)
            raise ValueError(f"{name} is given numbers that are infinite or not a number; its alpha cannot be set")
        if positive.size:
            # NumPy's partition: torch.quantile refuses 16 million elements, and torch.kthvalue takes 20 times as long.
            k = max(1, math.ceil(quantile * positive.size))
            earlier = layer.alpha.item() if layer in seen else ALPHA_MIN
            layer.alpha.fill_(max(float(np.partition(positive, k - 1)[k - 1]), earlier))
            seen.add(layer)

    with contextlib.ExitStack() as hooks, evaluation_mode(model):
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(set_alpha, with_kwargs=True))
        model(x.clone())  # a first layer that works in place would change the caller's images
    return model


# ---------------------------------------------------------------- what a model costs


def describe(model: nn.Module, input_shape: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
    """Return a row for each Conv2d and Linear layer: bits, sizes and the work for one image.

    Parameters
    ----------
    input_shape : ``(C, H, W)`` of one image; by default the model's own `input_shape`, which `build_model` sets.
        Without it MACs and bit operations are None; so are those of a layer that is not called as a module.

    Returns
    -------
    Rows in order of definition, with the keys ``name``, ``kind``, ``weight_bits``, ``activation_bits`` (of the input;
    32 if nothing rounds it; a mean counts as what it is taken of; of a model that cannot be traced, the bits asked
    for), ``parameters``, ``packed_bytes`` (weights packed
    at their bits, biases at 4 bytes), ``macs`` (multiply-accumulates an image) and ``bit_operations`` (MACs x weight
    bits x activation bits, an estimate of the hardware's work, not a time).

    Raises
    ------
    ValueError if the model cannot take an image of `input_shape`.

    Examples
    --------
    >>> net = quantize(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), "w2a2")
    >>> row = describe(net, input_shape=(8,))[1]
    >>> row["weight_bits"], row["packed_bytes"], row["macs"], row["bit_operations"]
    (2, 20, 16, 64)
    """
    check_model(model)
    input_shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if input_shape is not None:
        if not isinstance(input_shape, (tuple, list)):
            raise ValueError(f"input_shape must be (C, H, W); got {input_shape!r}")
        for size in input_shape:
            check_whole(size, "each size in input_shape")
    macs = _count_macs(model, input_shape) if input_shape is not None else {}
    rows = []
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        weight_bits, activation_bits = getattr(layer, "weight_bits", 32), getattr(layer, "activation_bits", 32)
        biases = 0 if layer.bias is None else layer.bias.numel()
        work = macs.get(name)
        rows.append(
            {
                "name": name,
                "kind": "conv" if isinstance(layer, nn.Conv2d) else "linear",
                "weight_bits": weight_bits,
                "activation_bits": activation_bits,
                "parameters": layer.weight.numel() + biases,
                "packed_bytes": math.ceil(layer.weight.numel() * weight_bits / 8) + 4 * biases,
                "macs": work,
                "bit_operations": None if work is None else work * weight_bits * activation_bits,
            }
        )
    return rows


def _count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    macs: dict[str, int] = {}
    if not layers:
        return macs

    def count(name: str, layer: nn.Module, _: Any, output: Tensor) -> None:
        # Each output number is one dot product as long as one filter.
        macs[name] = macs.get(name, 0) + output.numel() * layer.weight[0].numel()

    weight = next(iter(layers.values())).weight
    with contextlib.ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(functools.partial(count, name)))
        try:
            model(torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"the model cannot take an image of shape {input_shape!r}: {error}") from error
    return macs
