"""From a fake-quantized model to integers: `to_integer`, `pack_bits`, and the ONNX files of `onnx_files`.

>>> from qsal_helpers import build_model, load_data, quantize
>>> data = load_data("mnist", size=100)
>>> model = quantize(build_model("lenet5"), "w2a2").eval()
>>> net = to_integer(model, data)
>>> logits = net(data.test.images[:5])
>>> logits.dtype, logits.shape
(dtype('int64'), (5, 10))
>>> expected = model(data.normalise(data.test.images[:5])).detach().numpy()
>>> bool((abs(logits * net.output_scale - expected) <= net.output_scale).all())
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn
from tqdm.auto import tqdm

from ._arguments import check_whole
from .folding import Layer, Step, align_biases, fold
from .onnx_files import latencies, onnx_session, peak_memory, save_onnx

if TYPE_CHECKING:
    from .data import ImageData

__all__ = [
    "IntegerModel",
    "align_biases",
    "latencies",
    "onnx_session",
    "pack_bits",
    "peak_memory",
    "save_onnx",
    "to_integer",
    "unpack_bits",
]

INT32_MAX = 2**31 - 1


# ---------------------------------------------------------------- packing


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack whole numbers of `bits` bits each into bytes, the first number in the lowest bits.

    Parameters
    ----------
    codes : integers of any shape, read in C order, from ``-2**(bits-1)`` to ``2**(bits-1) - 1`` (two's complement).
    bits : 1 to 8. Numbers of 3, 5, 6 or 7 bits may lie across two bytes.

    Returns
    -------
    uint8, ``(ceil(codes.size * bits / 8),)``; spare bits at the end are 0.

    Raises
    ------
    ValueError if a number does not fit; TypeError if `codes` are not integers.

    Examples
    --------
    >>> pack_bits(np.array([1, -2, 0, -1]), bits=2)
    array([201], dtype=uint8)
    >>> f"{201:08b}"
    '11001001'
    """
    codes = np.asarray(codes)
    check_whole(bits, "bits", 1, 8)
    if codes.dtype.kind not in "iu":
        raise TypeError(f"codes must be integers; got {codes.dtype}")
    if codes.size and not (-(2 ** (bits - 1)) <= codes.min() and codes.max() < 2 ** (bits - 1)):
        raise ValueError(
            f"{bits} bits hold {-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1}; "
            f"got numbers from {codes.min()} to {codes.max()}"
        )
    unsigned = (codes.ravel().astype(np.int64) & (2**bits - 1)).astype(np.uint8)
    each = np.unpackbits(unsigned[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(each, bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, length: int) -> np.ndarray:
    """Return the first `length` numbers that `pack_bits` has packed, as int8, ``(length,)``.

    Raises
    ------
    ValueError if `packed` is not as long as `length` numbers need; TypeError if it is not uint8.

    Examples
    --------
    >>> unpack_bits(np.array([201], np.uint8), bits=2, length=4)
    array([ 1, -2,  0, -1], dtype=int8)
    """
    packed = np.asarray(packed)
    check_whole(bits, "bits", 1, 8)
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise TypeError(f"packed must be uint8 with one axis; got {packed.dtype} with {packed.ndim}")
    check_whole(length, "length", 0, 2**40)
    needed = -(-length * bits // 8)
    if len(packed) != needed:
        raise ValueError(f"{length} numbers of {bits} bits need {needed} bytes; got {len(packed)}")
    each = np.unpackbits(packed, count=length * bits, bitorder="little").reshape(length, bits)
    # The highest bit counts negative in two's complement: repeating it up to bit 7 makes an int8 of it.
    filled = np.concatenate([each, np.repeat(each[:, -1:], 8 - bits, axis=1)], axis=1)
    return np.packbits(filled, axis=1, bitorder="little").view(np.int8).ravel()


# ---------------------------------------------------------------- the operations, on integers only


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of whole numbers, without a bias.

    Attributes
    ----------
    name : the layer's name; its output is the accumulator.
    inputs : the one array that it reads.
    codes : integers, ``(O, C, kh, kw)`` or ``(O, I)``.
    """

    name: str
    inputs: tuple[str]
    codes: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the accumulators, ``(N, O, H, W)`` or ``(N, O)``, of the dtype of `codes`."""
        x = x.astype(self.codes.dtype)
        if self.codes.ndim == 2:
            return np.einsum("ni,oi->no", x, self.codes)
        windows = _windows(x, self.codes.shape[2:], self.stride, self.padding)
        # A row for each output pixel, as in a float convolution by matrix product (im2col).
        n, _, height, width = windows.shape[:4]
        rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * height * width, -1)
        product = np.einsum("pi,oi->po", rows, self.codes.reshape(len(self.codes), -1))
        return product.reshape(n, height, width, -1).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Requantize:
    """From accumulators to the next layer's integers: add the bias, multiply, shift, clip (Jacob et al. 2018, 2.2).

    ``((a + bias) * multipliers[0] + b * multipliers[1] + ... + rounding) >> shift``, held to 0..`top`. Further inputs
    ``b`` are those of a residual addition (and the colours of an image, whose scales differ).

    The scale ratio of two layers is ``multiplier / 2**shift``. A chip takes multipliers of 31 bits; here they are as
    wide as int64 allows, so that the result is the exact one unless it lies within about 1e-10 of a tie.

    Attributes
    ----------
    bias : int32, ``(O,)``, at the scale of the first input's accumulator.
    multipliers : int64, ``(inputs, O)``.
    rounding : int64, ``(O,)``: one half, and what `bias` lost when it was rounded.
    shift : int64, ``(O,)``.
    top : the largest integer, or None: no clipping (logits).
    """

    name: str
    inputs: tuple[str, ...]
    bias: np.ndarray
    multipliers: np.ndarray
    rounding: np.ndarray
    shift: np.ndarray
    top: int | None

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Return uint8 in 0..`top`, or int64 without `top`."""
        channel = (-1,) + (1,) * (arrays[0].ndim - 2)
        total = (arrays[0].astype(np.int64) + self.bias.reshape(channel)) * self.multipliers[0].reshape(channel)
        for array, multiplier in zip(arrays[1:], self.multipliers[1:], strict=True):
            total = total + array.astype(np.int64) * multiplier.reshape(channel)
        total = (total + self.rounding.reshape(channel)) >> self.shift.reshape(channel)
        return total if self.top is None else total.clip(0, self.top).astype(np.uint8)


@dataclass(frozen=True)
class Move:
    """Max-pooling, summing, flattening, slicing or padding of integers."""

    name: str
    inputs: tuple[str]
    function: Callable[[np.ndarray], np.ndarray]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `function` of `x`."""
        return self.function(x)


def _windows(x: np.ndarray, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> np.ndarray:
    if any(padding):
        x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    return sliding_window_view(x, kernel, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]


def _max_pool(x: np.ndarray, **window: tuple[int, int]) -> np.ndarray:
    # Padding with 0 is right because the integers are never negative.
    return _windows(x, **window).max(axis=(4, 5))


def _sum_pool(x: np.ndarray, **window: tuple[int, int]) -> np.ndarray:
    return _windows(x, **window).sum(axis=(4, 5), dtype=np.int64)


# ---------------------------------------------------------------- the integer model


@dataclass(frozen=True)
class IntegerModel:
    """A network in whole numbers, from the uint8 image to int64 logits. Made by `to_integer`.

    Attributes
    ----------
    steps : `Product`, `Requantize` and `Move`, in order of execution.
    output_scale : float logits are ``integers * output_scale``.
    image_shape : ``(C, H, W)``.
    """

    steps: tuple[Product | Requantize | Move, ...]
    output_scale: float
    image_shape: tuple[int, int, int]

    def __call__(self, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
        """Return the logits of uint8 `images`, ``(N, C, H, W)`` (an array, or a tensor on the CPU).

        Raises
        ------
        ValueError if the images have another dtype or shape.
        """
        images = self._check(images)
        check_whole(batch_size, "batch_size")
        starts = tqdm(range(0, len(images), batch_size), "integer model", leave=False, delay=2)
        return np.concatenate([self._run(images[i : i + batch_size])[self.steps[-1].name] for i in starts])

    def values(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return every array that is computed on the way, by the name of its step; all of them are integers."""
        return self._run(self._check(images))

    def __getitem__(self, name: str) -> Product | Requantize | Move:
        """Return the step of that name."""
        return {step.name: step for step in self.steps}[name]

    def _check(self, images: np.ndarray) -> np.ndarray:
        # asanyarray, so that a subclass which watches the arithmetic is kept.
        images = np.asanyarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(
                f"images must be uint8 of shape (N, {', '.join(map(str, self.image_shape))}); "
                f"got {images.dtype} of shape {images.shape}"
            )
        return images

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {f"image.{c}": images[:, c : c + 1] for c in range(images.shape[1])}
        arrays["ones"] = np.ones_like(images[:1, :1])
        for step in self.steps:
            arrays[step.name] = step(*(arrays[name] for name in step.inputs))
        return arrays


@dataclass(frozen=True)
class _Term:
    """An array of integers in a sum: what it stands for is ``scale * array``; no entry exceeds `bound` in size."""

    array: str
    scale: np.ndarray
    bound: np.ndarray
    grid: float  # its natural step: the product of the steps of its activations and weights
    channel: int | None = None  # the colour, for the parts of an image


@dataclass(frozen=True)
class _Value:
    """A real tensor of the float model as a sum of scaled integer arrays and a bias for each channel."""

    terms: tuple[_Term, ...]
    bias: np.ndarray | float = 0.0
    quantized: bool = True


def to_integer(model: nn.Module, data: ImageData) -> IntegerModel:
    """Turn a quantized model into one that computes with whole numbers only.

    Batch-norm is folded into a scale and a bias for each channel, weights become integers of 2 to 8 bits, biases
    int32, and the scale between two layers an integer multiplier and a shift (Jacob et al. 2018, arXiv:1712.05877).
    Between the layers nothing is approximated except by rounding far below one step. The logits are rounded to whole
    steps of the last layer's accumulator; with the usual 8 bits there that is far below what tells two classes apart,
    with 2 bits (``Precision(2, 2, last=2)``) two logits can become equal.

    The image's normalisation ``(pixel / 255 - mean) / std`` becomes part of the first layer: the layer runs once on
    the pixels of each colour and once on an image of ones, which carries the mean. Both are padded with 0, so the
    border agrees, too.

    Parameters
    ----------
    model : made by `quantize`, with no layer at 32 bits; used as in evaluation mode, on the CPU, and not changed.
    data : what the model was trained on; gives ``mean``, ``std`` and the shape of an image.

    Raises
    ------
    ValueError that names what cannot be expressed in integers, such as a layer that is not quantized.

    Examples
    --------
    >>> from qsal_helpers import build_model, load_data, quantize
    >>> data = load_data("mnist", size=100)
    >>> net = to_integer(quantize(build_model("cnn"), "w4a2"), data)
    >>> net["conv2"].codes.min(), net["relu2"].bias.dtype, net["relu2"].top
    (np.int32(-15), dtype('int32'), 3)
    """
    values: dict[str, _Value] = {}
    integer_steps: list[Product | Requantize | Move] = []
    steps = fold(model, data)
    for step in steps:
        inputs = [values[name] for name in step.inputs]
        values[step.name], made = _translate(step, inputs, len(data.mean))
        integer_steps += made
    scale = float(min(term.grid for term in values[steps[-1].name].terms))
    last = "logits" if "logits" not in values else "logits.output"  # a model may call its own last layer logits
    integer_steps.append(_requantize(last, values[steps[-1].name], scale, None))
    return IntegerModel(tuple(integer_steps), scale, steps[0].shape)


def _translate(step: Step, inputs: list[_Value], colours: int) -> tuple[_Value, list]:
    if step.kind == "image":
        std, shift = step.options["std"], -step.options["mean"] / step.options["std"]
        pixels = [_term(f"image.{c}", 1 / (255 * std[c]), 255, channel=c) for c in range(colours)]
        ones = [_term("ones", shift[c], 1, channel=c) for c in range(colours) if shift[c]]
        return _Value((*pixels, *ones)), []
    if step.kind == "layer":
        return _multiply(step, inputs[0], colours)
    if step.kind == "pact":
        scale, top = step.options["step"], step.options["top"]
        made = _requantize(step.name, inputs[0], scale, top)
        return _Value((_term(step.name, scale, top),)), [made]
    if step.kind == "add":
        if colours > 1 and any(term.channel is not None for value in inputs for term in value.terms):
            raise ValueError(f"{step.name} cannot be turned into integers: it adds to an image in colours")
        first, second = inputs
        return _Value(first.terms + second.terms, first.bias + second.bias, quantized=False), []
    if step.kind == "clip":
        raise ValueError(f"{step.name} cannot be turned into integers: it is an activation without quantization")
    if not inputs[0].quantized:
        raise ValueError(
            f"{step.name} cannot be turned into integers: its input is not quantized; put its ReLU before it"
        )
    if step.kind == "flatten":
        return _move(step, inputs[0], lambda x: x.reshape(len(x), -1))
    if inputs[0].terms[0].channel is not None:
        raise ValueError(f"{step.name} cannot be turned into integers: the first operation must be a Conv2d or Linear")
    if step.kind == "average_pool":
        return _move(step, inputs[0], partial(_sum_pool, **step.options), int(np.prod(step.options["kernel"])))
    if step.kind == "max_pool":
        return _move(step, inputs[0], partial(_max_pool, **step.options))
    if step.kind == "slice":
        return _move(step, inputs[0], lambda x: x[step.options["slices"]])
    return _move(step, inputs[0], partial(np.pad, pad_width=step.options["widths"]))


def _term(array: str, scale: float, bound: int, channel: int | None = None) -> _Term:
    return _Term(array, np.array([scale]), np.array([bound]), abs(scale), channel)


def _move(step: Step, value: _Value, function: Callable, count: int = 1) -> tuple[_Value, list]:
    terms, made = [], []
    for term in value.terms:
        name = step.name if len(value.terms) == 1 else f"{step.name}.{term.array}"
        if name not in [m.name for m in made]:
            made.append(Move(name, (term.array,), function))
        # A sum of `count` integers stands for their mean, so each of its units is `count` times smaller.
        terms.append(_Term(name, term.scale / count, term.bound * count, term.grid, term.channel))
    return _Value(tuple(terms)), made


def _multiply(step: Step, value: _Value, colours: int) -> tuple[_Value, list]:
    layer: Layer = step.layer
    if layer.bits == 32:
        raise ValueError(f"{step.name} cannot be turned into integers: its weights are not quantized (32 bits)")
    if not value.quantized:
        raise ValueError(
            f"{step.name} cannot be turned into integers: its input is not quantized; put a ReLU before it"
        )
    terms, made = [], []
    for term in value.terms:
        codes, name = layer.codes, step.name
        if term.channel is not None:
            codes = codes.reshape(len(codes), colours, -1)[:, term.channel]
            codes = codes.reshape(len(codes), *((1, *layer.codes.shape[2:]) if layer.codes.ndim == 4 else (-1,)))
            name = f"{step.name}.{term.array}" + (f".{term.channel}" if term.array.endswith("ones") else "")
        bound = np.abs(codes).reshape(len(codes), -1).sum(1) * term.bound
        dtype = np.int32 if bound.max() <= INT32_MAX else np.int64
        made.append(Product(name, (term.array,), codes.astype(dtype), layer.stride, layer.padding))
        terms.append(_Term(name, term.scale * layer.scale, bound, term.grid * layer.scale.max()))
    return _Value(tuple(terms), layer.bias, quantized=False), made


def _requantize(name: str, value: _Value, step: float, top: int | None) -> Requantize:
    channels = max(len(value.terms[0].scale), np.size(value.bias))
    ratios = np.stack([np.broadcast_to(term.scale / step, channels) for term in value.terms])
    bounds = np.stack([np.broadcast_to(term.bound, channels) for term in value.terms])
    target = np.broadcast_to(np.asarray(value.bias, float) / step, channels)
    # The widest shift with which no sum leaves int64.
    largest = (np.abs(ratios) * bounds).sum(0) + 2 * np.abs(target) + 2
    shift = 61 - np.ceil(np.log2(largest)).astype(np.int64)
    if shift.min() < 8:
        raise ValueError(f"{name} cannot be turned into integers: its values reach {largest.max():.1g} steps")
    multipliers = np.rint(np.ldexp(ratios, shift)).astype(np.int64)
    first, room = ratios[0], INT32_MAX - np.minimum(bounds[0], INT32_MAX)
    bias = np.rint(np.divide(target, first, out=np.zeros(channels), where=first > 0)).clip(-room, room).astype(np.int64)
    rounding = np.rint(np.ldexp(target, shift)).astype(np.int64) - bias * multipliers[0] + (1 << (shift - 1))
    arrays = tuple(term.array for term in value.terms)
    return Requantize(name, arrays, bias.astype(np.int32), multipliers, rounding, shift, top)
