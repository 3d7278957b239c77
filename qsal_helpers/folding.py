"""A network as a short list of steps with every batch-norm folded away: what `export` and `onnx_files` start from."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from ._arguments import check_model, first_line
from ._forward import copied
from .data import ImageData
from .quantization import (
    _LEAVES,
    PACT,
    QuantConv2d,
    QuantLinear,
    _caller,
    _has_zero,
    _refuse_overwriting,
    _Tracer,
    weight_codes,
)

_IGNORED = (nn.Identity, nn.Dropout, nn.Dropout2d)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Layer:
    """A Conv2d or Linear with the batch-norm behind it folded in: ``y = scale * (codes applied to x) + bias``.

    Attributes
    ----------
    bits : of the weights; 32 means that they are no integers, and `codes` is empty.
    codes : int64, ``(O, C, kh, kw)`` or ``(O, I)``, signs chosen so that `scale` is never negative.
    odd : whether the codes are the odd integers from ``-(2**bits - 1)`` to ``2**bits - 1`` (no zero among them).
    scale, bias : float64, ``(O,)``.
    weight : float64, the folded weight, of the shape of `codes`.
    stride, padding : of a convolution, ``(rows, columns)``.
    bias_holder : the module whose ``bias`` parameter moves `bias`: the layer, or the batch-norm behind it
        (empty if that has no parameters).
    """

    bits: int
    codes: np.ndarray
    odd: bool
    scale: np.ndarray
    bias: np.ndarray
    weight: np.ndarray
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    bias_holder: str = ""


@dataclass(frozen=True)
class Step:
    """One operation: its name, what it is, the names of its inputs, and the shape of its output for one image.

    `kind` is "image", "layer", "pact", "clip", "max_pool", "average_pool", "flatten", "add", "pad" or "slice".
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    layer: Layer | None = None
    options: dict[str, Any] = field(default_factory=dict)


def fold(model: nn.Module, data: ImageData) -> list[Step]:
    """Return the steps of `model` in evaluation mode, in order of execution, batch-norms folded into their layers.

    A batch-norm with the running mean m and variance v computes ``g * (y - m) + beta`` with
    ``g = gamma / sqrt(v + eps)``. Behind ``y = scale * z + b`` that is ``(g * scale) * z + (g * (b - m) + beta)``:
    the same form, with another scale and bias for each channel.

    Parameters
    ----------
    data : gives ``mean``, ``std`` and the shape of an image.

    Raises
    ------
    ValueError that names the first operation that the integer and ONNX models do not know.

    Examples
    --------
    >>> from qsal_helpers import build_model, load_data, quantize
    >>> steps = fold(quantize(build_model("cnn"), "w4a4"), load_data("mnist", size=100))
    >>> [step.name for step in steps][:5]
    ['image', 'conv1', 'relu1', 'pool1', 'conv2']
    """
    check_model(model)
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be an ImageData, as load_data returns it; got {type(data).__name__}")
    if hooked := [
        n or type(model).__name__ for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks
    ]:
        raise ValueError(f"{hooked[0]} has a forward hook, which no file can hold; remove it before exporting")
    model = copied(model).cpu().float().eval()
    image_shape = tuple(data.train.images.shape[1:])
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds, all meaning "not traceable"
        raise ValueError(
            f"{type(model).__name__} cannot be exported: its forward cannot be traced ({first_line(error)}); give it a "
            "forward without branches on its data and without further arguments, and do not compile it"
        ) from error
    _refuse_overwriting(model, graph)
    try:
        with torch.no_grad():
            two_images = torch.zeros(2, *image_shape)  # two, so that a view that mixes images shows
            model(two_images)  # ShapeProp would print the whole stack of an error
            ShapeProp(torch.fx.GraphModule(model, graph)).propagate(two_images)
    except RuntimeError as error:
        reason = f"it cannot take images {image_shape} ({first_line(error)})"
        raise ValueError(f"{type(model).__name__} cannot be exported: {reason}") from error
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), _IGNORED):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)

    steps: dict[str, Step] = {}
    names: dict[torch.fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], torch.fx.Node) or names[node.args[0]] != next(reversed(steps)):
                raise ValueError("the model must return one tensor, the result of its last operation")
            continue
        if node.op != "placeholder" and "tensor_meta" not in node.meta:  # a size, read for a view
            continue
        inputs = tuple(names[n] for n in node.all_input_nodes if n in names)
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            source = steps[inputs[0]]
            if source.kind != "layer" or len(node.all_input_nodes[0].users) > 1:
                raise ValueError(
                    f"{node.target} cannot be folded: a batch-norm must directly follow a Conv2d or Linear"
                )
            folded = _fold_batch_norm(source.layer, module, node.target)
            steps[source.name], names[node] = replace(source, layer=folded), source.name
            continue
        kind, layer, options = _operation(node, module, data)
        name = str(node.target) if module is not None and node.target not in steps else node.name
        name = "image" if kind == "image" else name
        if name in steps:
            raise ValueError(f"the model uses the name {name!r} twice; only one input, called 'image', is possible")
        shape = tuple(node.meta["tensor_meta"].shape[1:])
        steps[name], names[node] = Step(name, kind, inputs, shape, layer, options), name
    return list(steps.values())


def _operation(node: torch.fx.Node, module: nn.Module | None, data: ImageData) -> tuple[str, Layer | None, dict]:
    args, target = node.args, node.target
    if isinstance(module, _LEAVES) and not _computes_as_its_class(module):
        raise ValueError(
            f"{target} cannot be exported: it is a {type(module).__name__} with a forward of its own, which no file "
            "can hold; put an nn.Conv2d, nn.Linear or nn.ReLU in its place"
        )
    if node.op == "placeholder":
        return "image", None, {"mean": np.array(data.mean, float), "std": np.array(data.std, float)}
    if isinstance(module, nn.Linear) and len(node.all_input_nodes[0].meta["tensor_meta"].shape) != 2:
        raise ValueError(f"{target} cannot be exported: a Linear must read (B, features); flatten its input first")
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return "layer", _layer(module, target), {}
    if isinstance(module, PACT):
        alpha = module.alpha.item()
        if module.bits == 32:
            return "clip", None, {"high": alpha}
        top = 2**module.bits - 1
        return "pact", None, {"step": alpha / top, "top": top}
    if isinstance(module, (nn.ReLU, nn.ReLU6)):
        return "clip", None, {"high": 6.0 if isinstance(module, nn.ReLU6) else None}
    plain = isinstance(module, nn.MaxPool2d) and not (module.ceil_mode or module.return_indices)
    if plain and _pair(module.dilation) == (1, 1):
        return "max_pool", None, _window(module)
    if isinstance(module, nn.AvgPool2d) and not (
        any(_pair(module.padding)) or module.ceil_mode or module.divisor_override
    ):
        return "average_pool", None, _window(module)
    if isinstance(module, nn.AdaptiveAvgPool2d) and _pair(module.output_size) == (1, 1):
        side = tuple(node.all_input_nodes[0].meta["tensor_meta"].shape[2:])
        return "average_pool", None, {"kernel": side, "stride": side, "padding": (0, 0)}
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return "flatten", None, {}
    if isinstance(module, nn.ZeroPad2d) and min(module.padding) >= 0:
        left, right, top, bottom = module.padding
        return "pad", None, {"widths": ((0, 0), (0, 0), (top, bottom), (left, right))}
    if target in (torch.flatten, "flatten") and (*args, *node.kwargs.values())[1:] in ((1,), (1, -1)):
        return "flatten", None, {}
    if target in ("view", "reshape", torch.reshape) and _flattens(node):
        return "flatten", None, {}
    if target in _ADDITIONS and _is_plain_addition(node):
        return "add", None, {}
    if target is F.pad and _pads_with_zeros(node):
        flat = tuple(args[1]) + (0,) * (8 - len(args[1]))
        # torch counts from the last axis; the result counts from the first: ((before, after), ...).
        return "pad", None, {"widths": tuple((flat[i], flat[i + 1]) for i in (6, 4, 2, 0))}
    if target is operator.getitem and _slices_channels_and_pixels(args[1]):
        return "slice", None, {"slices": args[1]}
    what = f"{getattr(target, '__name__', target)} in {_caller(node)}"
    if module is not None:
        what = f"{target}, {type(module).__name__}({module.extra_repr()}),"
    raise ValueError(
        f"{what} cannot be exported: it is not among the operations that are known here: Conv2d, Linear, batch-norm, "
        "PACT, ReLU, ReLU6, max and average pooling as modules, flatten, sums of two, padding with zeros, slices"
    )


def _flattens(node: torch.fx.Node) -> bool:
    before, after = (n.meta["tensor_meta"].shape for n in (node.all_input_nodes[0], node))
    return after == (before[0], before[1:].numel())


def _is_plain_addition(node: torch.fx.Node) -> bool:
    if node.kwargs or not all(isinstance(a, torch.fx.Node) for a in node.args) or node.args[0] is node.args[1]:
        return False
    if node.target is operator.iadd and len(node.args[0].users) > 1:  # who reads it later would get another number
        return False
    first, second = (a.meta["tensor_meta"].shape for a in node.args)
    return first == second


def _pads_with_zeros(node: torch.fx.Node) -> bool:
    options = dict(zip(("mode", "value"), node.args[2:], strict=False)) | node.kwargs
    if options.get("mode", "constant") != "constant" or options.get("value"):
        return False
    images = len(node.args[0].meta["tensor_meta"].shape) == 4 and len(node.args[1]) <= 6
    return images and min(node.args[1]) >= 0


def _slices_channels_and_pixels(index: object) -> bool:
    if not isinstance(index, tuple) or not all(isinstance(s, slice) for s in index):
        return False
    if not all(isinstance(bound, int | None) for s in index for bound in (s.start, s.stop, s.step)):
        return False
    return index[0] == slice(None) and all((s.step or 1) > 0 for s in index)


def _computes_as_its_class(module: nn.Module) -> bool:
    parametrized = nn.utils.parametrize.is_parametrized(module)  # torch then makes a class for this one layer
    kind = type(module).__mro__[1] if parametrized else type(module)
    known = (nn.Conv2d, nn.Linear, nn.ReLU, nn.ReLU6, QuantConv2d, QuantLinear, PACT)
    return kind in known and "forward" not in vars(module)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _window(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, tuple[int, int]]:
    kernel, stride, padding = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
    return {"kernel": kernel, "stride": stride, "padding": padding}


def _layer(module: nn.Conv2d | nn.Linear, name: str) -> Layer:
    shape = {}
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros" or module.dilation != (1, 1):
            raise ValueError(
                f"{name} cannot be exported: a Conv2d with groups, dilation or padding_mode is not known here"
            )
        if isinstance(module.padding, str):
            raise ValueError(f"{name} cannot be exported: write its padding as numbers, not {module.padding!r}")
        shape = {"stride": module.stride, "padding": module.padding}
    weight, bits = module.weight.detach(), getattr(module, "weight_bits", 32)
    codes, step, odd = np.zeros(0, np.int64), 1.0, False
    if bits == 32:
        folded = weight.double().numpy()
    else:
        float_codes, float_step = weight_codes(weight, bits, module.scheme)
        codes, step = float_codes.numpy().astype(np.int64), float(float_step)
        odd = not _has_zero(bits, module.scheme)
        folded = codes * step
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
    return Layer(bits, codes, odd, np.full(len(weight), step), bias, folded, **shape, bias_holder=name)


def _fold_batch_norm(layer: Layer, module: nn.BatchNorm1d | nn.BatchNorm2d, name: str) -> Layer:
    if module.running_mean is None:
        raise ValueError(f"{name} cannot be folded: it keeps no running mean (track_running_stats=False)")
    mean, variance = module.running_mean.double().numpy(), module.running_var.double().numpy()
    gain, shift = 1 / np.sqrt(variance + module.eps), 0.0
    if module.affine:
        gain = gain * module.weight.detach().double().numpy()
    if module.bias is not None:
        shift = module.bias.detach().double().numpy()
    column = gain.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    return replace(
        layer,
        codes=layer.codes if layer.bits == 32 else np.where(column < 0, -layer.codes, layer.codes),
        scale=layer.scale * np.abs(gain),
        bias=(layer.bias - mean) * gain + shift,
        weight=layer.weight * column,
        bias_holder=name if module.bias is not None else "",
    )


# ---------------------------------------------------------------- biases on the grid of an 8-bit container


def container_codes(layer: Layer) -> tuple[np.ndarray, np.ndarray] | None:
    """Return int8 weights and their scale ``(O,)``, or None if the codes do not fit into int8.

    Codes of few bits are multiplied by the largest whole number that fits: 2-bit codes -3, -1, 1, 3 become
    -126, -42, 42, 126. The weights stay the same numbers, and the accumulator's steps become 42 times finer,
    which is what an int32 bias is rounded to.

    Examples
    --------
    >>> layer = Layer(2, np.array([[-3, 1]]), True, np.array([0.42]), np.zeros(1), np.array([[-1.26, 0.42]]))
    >>> container_codes(layer)
    (array([[-126,   42]], dtype=int8), array([0.01]))
    """
    factor = _container_factor(layer)
    return None if factor == 0 else ((layer.codes * factor).astype(np.int8), layer.scale / factor)


def _container_factor(layer: Layer) -> int:
    largest = 2**layer.bits - 1 if layer.odd else 2 ** (layer.bits - 1) - 1
    return 127 // largest


def align_biases(model: nn.Module, data: ImageData) -> nn.Module:
    """Return a copy of a quantized model whose biases keep its sums away from the rounding borders.

    Two programs agree on an activation unless its sum lies so near the border between two levels that their float
    roundings fall on different sides. The sums in front of a rounding are whole numbers of steps of the accumulator,
    plus the bias; so each channel's bias is moved by at most half such a step, to where the nearest border is far
    from all possible sums. The biases that an integer kernel adds to its accumulator are at the same time
    made whole numbers of steps of the 8-bit container (see `container_codes`), which int32 can express.

    Where a channel has so many borders that no bias is good enough, the gain of its batch-norm is changed, too, by a
    few thousandths. In front of a residual addition it becomes such that the steps of the two sums fit; that may take
    a hundredth.

    What changes are parameters of the layer or of the batch-norm behind it, so that the float model, too, has the
    biases of the exported ones. With 8-bit weights and 8-bit activations there is little room between the borders, and
    with several colours, whose steps differ, the sums of the first layer lie too dense: there a rare activation may
    still fall on either side. A layer that is used several times keeps its bias.

    Examples
    --------
    >>> from qsal_helpers import build_model, load_data, quantize
    >>> model, data = quantize(build_model("lenet5"), "w2a2"), load_data("mnist", size=100)
    >>> aligned = align_biases(model, data)
    >>> 0 < (aligned.fc1.bias - model.fc1.bias).abs().max().item() < 0.05
    True
    """
    model = copied(model)
    steps = {step.name: step for step in fold(model, data)}
    inputs, grids = integer_inputs(list(steps.values())), _grids(steps)
    uses = Counter(step.layer.bias_holder for step in steps.values() if step.kind == "layer")
    for name, step in steps.items():
        # One bias cannot serve two places, each with sums and borders of its own.
        if step.kind != "layer" or step.layer.bits == 32 or uses[step.layer.bias_holder] > 1:
            continue
        layer, holder = step.layer, model.get_submodule(step.layer.bias_holder)
        accumulator = layer.scale * grids.get(step.inputs[0], (0.0, None))[0]
        if getattr(holder, "bias", None) is None:
            continue
        kernel = container_codes(layer) if name in inputs else None
        parts = _FREE if kernel is None else _container_factor(layer)
        borders, seen, unit = _borders(step, steps, grids)
        if borders is None and kernel is None:
            continue
        weights = holder.weight.detach().double().cpu().numpy() if isinstance(holder, _NORMS) else None
        for channel in np.flatnonzero((accumulator > 0) & (np.abs(layer.bias) * parts < 2**30 * accumulator)):
            bias, grid, gain = layer.bias[channel], accumulator[channel], 1.0
            if borders is None:
                target = _whole(bias, grid / parts)
            else:
                gains = np.ones(1)
                if weights is not None:
                    # What float32 makes of them, so that the sums lie where they are expected.
                    gains = (weights[channel] * _gains(grid, unit)).astype(np.float32) / weights[channel]
                target, gain = _farthest(bias, borders, seen[channel], grid, parts, kernel is not None, gains)
            with torch.no_grad():
                own = float(holder.bias[channel])
                # A batch-norm's bias is only a part of the folded one; the gain applies to the other part.
                holder.bias[channel] = own + target - bias - (bias - own) * (gain - 1)
                if gain != 1:
                    holder.weight[channel] *= gain
    return model


# Biases that no kernel has to express in whole numbers may take this many places in a step of the accumulator.
_FREE = 1024
# In steps of the accumulator; more than float32 loses in any sum of the course's networks (0.03 at most, mostly 0.005).
_FAR = 0.04
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _whole(value: float, step: float) -> float:
    return float(np.rint(value / step) * step)


def _gains(accumulator: float, unit: float | None) -> np.ndarray:
    """Return factors for the gain of a channel, the smallest change first."""
    if unit is None:
        gains = 1 + 1e-4 * np.arange(-32, 33)
    else:
        # With `unit` a whole number of halves, quarters or eighths of a step, the added numbers share their borders.
        ratio, parts = unit / accumulator, np.array([1, 2, 4, 8])
        gains = np.append(1.0, ratio * parts / np.maximum(np.rint(ratio * parts), 1))
    return gains[np.abs(gains - 1).argsort(kind="stable")]


def _farthest(
    bias: float,
    borders: np.ndarray,
    seen: np.ndarray,
    accumulator: float,
    parts: int,
    whole: bool,
    gains: np.ndarray,
) -> tuple[float, float]:
    """Return a bias and a gain with which the borders are far from all whole steps of the accumulator."""
    best, result = -1.0, (bias, 1.0)
    moves = np.array(sorted(range(-(parts // 2), parts // 2 + 1), key=abs))
    for gain in gains:
        step = accumulator * gain
        candidates = (_whole(bias, step / parts) if whole else bias) + step / parts * moves
        # What the filters see of the mean grows with the gain.
        places = np.sort((borders[:, None] / step - seen / accumulator).ravel() % 1)
        places = np.concatenate([places[-1:] - 1, places, places[:1] + 1])
        offsets = candidates / step % 1
        after = np.searchsorted(places, offsets).clip(1, len(places) - 1)
        margins = np.minimum(places[after] - offsets, offsets - places[after - 1])
        # The smallest move that is far enough, else the farthest.
        chosen = np.minimum(margins, _FAR).argmax()
        if margins[chosen] > best:
            best, result = margins[chosen], (float(candidates[chosen]), float(gain))
        if best >= _FAR:
            break
    return result


def _grids(steps: dict[str, Step]) -> dict[str, tuple[float, int | None]]:
    """Return the grid of each array that has one, apart from a constant for each pixel: its step and its top level.

    The top is None if the levels are too many to list.
    """
    grids: dict[str, tuple[float, int | None]] = {}
    for name, step in steps.items():
        source = step.inputs[0] if step.inputs else ""
        if step.kind == "image" and len(step.options["std"]) == 1:
            grids[name] = 1 / (255 * step.options["std"][0]), None
        elif step.kind == "pact":
            grids[name] = step.options["step"], step.options["top"]
        elif source in grids and step.kind == "average_pool":
            grids[name] = grids[source][0] / np.prod(step.options["kernel"]), None
        elif source in grids and step.kind in ("max_pool", "flatten", "slice", "pad") and source != "image":
            grids[name] = grids[source]
    return grids


def _borders(
    step: Step, steps: dict[str, Step], grids: dict[str, tuple[float, int | None]]
) -> tuple[np.ndarray | None, np.ndarray, float | None]:
    """Return where the rounding behind a layer changes its result, in the units of the layer's output.

    Returns
    -------
    borders : ``(borders,)``, less what a residual addition may add; None if no rounding follows, or if what is
        added is unknown.
    seen : ``(O, places)``, what the layer makes of the mean that was subtracted from the image; 0 in later layers.
    unit : the step of what a residual addition adds, or None if there is none.
    """
    layer, unit = step.layer, None
    seen = np.zeros((len(layer.codes), 1))
    if step.inputs[0] == "image":
        if "image" not in grids:
            return None, seen, None
        # Filters at the border of the image see less of it than those inside.
        options = steps["image"].options
        mean = torch.full((1, *steps["image"].shape), -(options["mean"] / options["std"]).item(), dtype=torch.float64)
        places = F.conv2d(mean, torch.from_numpy(layer.weight), stride=layer.stride, padding=layer.padding)
        seen = np.unique(places[0].flatten(1).numpy().round(12), axis=1)
    reader, added = next((s for s in steps.values() if step.name in s.inputs), None), np.zeros(1)
    if reader is not None and reader.kind == "add":
        unit, top = grids.get(next(name for name in reader.inputs if name != step.name), (0.0, None))
        if top is None:
            return None, seen, None
        added = unit * np.arange(top + 1)
        reader = next((s for s in steps.values() if reader.name in s.inputs), None)
    if reader is None or reader.kind != "pact":
        return None, seen, None
    borders = ((np.arange(reader.options["top"]) + 0.5) * reader.options["step"])[:, None] - added
    return borders.ravel(), seen, unit


def integer_inputs(steps: list[Step]) -> dict[str, float]:
    """Return, for each layer that an integer kernel can compute, its name and the scale of its input.

    Its input must be integers of one scale. Activations stay integers through max-pooling, flattening, slicing and
    zero-padding; averaging ends that. And its output must not go into a residual addition, which is done in float.
    """
    added = {name for step in steps if step.kind == "add" for name in step.inputs}
    scales: dict[str, float] = {}
    layers = {}
    for step in steps:
        source = scales.get(step.inputs[0]) if step.inputs else None
        if step.kind == "pact":
            scales[step.name] = step.options["step"]
        elif step.kind in ("max_pool", "flatten", "slice", "pad") and source is not None:
            scales[step.name] = source
        elif step.kind == "layer" and step.layer.bits < 32 and source is not None and step.name not in added:
            layers[step.name] = source
    return layers
