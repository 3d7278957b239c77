"""Saliency maps: which pixels of an image a network's output hangs on.

One function, `saliency_map`, for seven methods. Grad-CAM and guided backpropagation come from Captum. The methods that
are averages of gradients ask torch for them directly, which saves Captum's detours; the tests hold them equal to
Captum's own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import check_flag, check_images, check_model, check_number, check_seed, check_whole
from ._fills import as_pixels, black
from ._forward import copied, evaluation_mode, logits_of
from .quantization import PACT

MOST_COPIES = 10_000  # noisy copies or steps an image; more would only fill the memory


def saliency_map(
    model: nn.Module, x: Tensor, target: int | Tensor | None = None, method: str = "gradient", **options: Any
) -> Tensor:
    """Return one saliency map an image.

    The model is used in evaluation mode and left as it was: mode, gradients, flags and hooks.

    Parameters
    ----------
    model : maps ``(B, C, H, W)`` to logits ``(B, classes)``.
    x : normalised images, float ``(N, C, H, W)``, on any device; each batch is moved to the model's.
    target : the class to explain: one for all images, or int64 ``(N,)``. ``None``: each image's predicted class.
    method : what the map shows of the logit f of that class:

        - "gradient": df/dx (Simonyan et al. 2014).
        - "input_x_gradient": x * df/dx.
        - "smooth_grad": the mean gradient of noisy copies (Smilkov et al. 2017). Options: `samples` (25); `noise`
          (0.15), the noise's standard deviation as a fraction of each image's range; `seed` (0). All images get the
          same draw, so that a map does not depend on what else is in the batch.
        - "integrated_gradients": (x - baseline) * the mean gradient on the way from the baseline to x (Sundararajan
          et al. 2017). Options: `steps` (50, Gauss-Legendre); `baseline`, a number or a tensor that broadcasts
          against one image; ``None`` takes the smallest value of `x` in each channel: black.
        - "grad_cam": a layer's activations, weighted by their mean gradients, and enlarged to the image (Selvaraju
          et al. 2017). Option: `layer`, a module or its name; ``None`` takes the last Conv2d that is executed.
        - "guided_backprop": the gradient, but every ReLU stops what is negative on the way back (Springenberg et al.
          2015).
        - "random": uniform noise, the baseline that a map has to beat. Option: `seed` (0).

    absolute : option of every method. True (default): a magnitude, the sum of the channels' absolute values;
        for "grad_cam" its positive part, as in the paper. False: the signed sum over the channels.
    batch_size : option of every method; how many images, noisy copies and steps included, go through the model at once
        (64). This bounds the memory; Captum calls it ``internal_batch_size``. It changes a map by float rounding
        only; in a quantized model that can tip an activation over to the next level, and so show.

    Returns
    -------
    float32 ``(N, H, W)``, on the device of `x`; not normalised.

    Raises
    ------
    TypeError if `x` is not floating point, or for an option that the method does not have; ValueError for a method,
    shape or class that does not exist, and where a method does not fit the model.

    Warns
    -----
    If "integrated_gradients" is asked of a quantized model: see `completeness_error`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 0.0, -3.0, 0.0], [0.0, 2.0, 0.0, 0.0]]))
    >>> x = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]]])
    >>> saliency_map(model, x, target=0).tolist()
    [[[1.0, 0.0], [3.0, 0.0]]]
    >>> saliency_map(model, x, target=0, absolute=False).tolist()
    [[[1.0, 0.0], [-3.0, 0.0]]]
    """
    check_model(model)
    if not isinstance(method, str) or method not in _METHODS:
        raise ValueError(f"there is no saliency method {method!r}; choose one of {', '.join(_METHODS)}")
    absolute, batch_size = options.pop("absolute", True), options.pop("batch_size", 64)
    compute = _METHODS[method]
    known = [name for name, p in inspect.signature(compute).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        known = ", ".join(["absolute", "batch_size", *known])
        raise TypeError(f"{method} has no option {unknown[0]!r}; it has {known}")
    check_images(x)
    check_flag(absolute, "absolute")
    check_whole(batch_size, "batch_size")
    target = _check_target(target, len(x))
    if method == "random":
        return _random(x, **options)
    if method == "integrated_gradients":
        options["baseline"] = _baseline(x, options.get("baseline"))
        _warn_if_incomplete(model)
    if not len(x):
        return torch.empty(0, *x.shape[2:], dtype=torch.float32, device=x.device)
    device = device_of(model, x)
    maps = []
    if method not in ("gradient", "input_x_gradient"):  # these two see the logits anyway
        target = explained_classes(model, x, target, batch_size)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        if method == "guided_backprop":
            model = _with_real_relus(model, x[:1].to(device))
        if method == "grad_cam":
            options["layer"] = _find_layer(model, options.get("layer"), x[:1].to(device))
        for start in range(0, len(x), batch_size):
            here = slice(start, start + batch_size)
            batch = x[here].detach().clone().to(device, memory_format=torch.channels_last)
            classes = None if target is None else target[here].clone().to(device)
            attribution = compute(model, batch, classes, batch_size, **options).detach()
            if method == "grad_cam":
                attribution = attribution.relu() if absolute else attribution
                attribution = F.interpolate(attribution, x.shape[2:], mode="bilinear", align_corners=False)
            elif absolute:
                attribution = attribution.abs()
            maps.append(attribution.sum(1).to(x.device, torch.float32))
    return torch.cat(maps)


def completeness_error(
    model: nn.Module, x: Tensor, target: int | Tensor | None = None, steps: int = 50, **options: Any
) -> Tensor:
    """Return by how much integrated gradients miss what they promise, relative to it.

    Completeness (Sundararajan et al. 2017, section 3): the attributions of an image sum to f(x) - f(baseline). This is
    ``|sum - (f(x) - f(baseline))| / |f(x) - f(baseline)|``. In a float network it goes to 0 as `steps` grow. In a
    quantized one it does not: activations that are staircases have a true gradient of 0, and the straight-through
    gradient that stands in for it is not the slope of f.

    Parameters
    ----------
    steps, **options : of the method "integrated_gradients"; see `saliency_map`, whose warning is left out here.

    Returns
    -------
    float32 ``(N,)``; infinite where f(x) equals f(baseline) but the sum is not 0.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> bool((completeness_error(model, torch.rand(3, 1, 2, 2)) < 1e-3).all())
    True
    """
    check_images(x)
    if "absolute" in options:
        raise TypeError("completeness_error has no option 'absolute'; completeness is about the signed sum")
    options["baseline"] = _baseline(x, options.get("baseline"))
    target = explained_classes(model, x, target)
    device, promised = device_of(model, x), []
    with evaluating(model), torch.no_grad():
        start = logits_of(model, options["baseline"].to(device).expand(1, *x.shape[1:]))
        for batch, classes in zip(x.split(64), target.split(64), strict=True):
            change = (logits_of(model, batch.to(device)) - start).to(x.device)
            promised.append(change.gather(1, classes[:, None])[:, 0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="integrated gradients do not add up")
        maps = saliency_map(model, x, target, "integrated_gradients", absolute=False, steps=steps, **options)
    promised = torch.cat(promised)
    missed = (maps.sum((1, 2)) - promised).abs()
    return torch.where(missed == 0, 0, missed / promised.abs()).float()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode with frozen parameters; put every flag back at the end, also after an error.

    Frozen, because a gradient for the input needs none for the parameters: a quantized layer then saves its work.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> with evaluating(model):
    ...     model.training, model.weight.requires_grad
    (False, False)
    >>> model.training, model.weight.requires_grad
    (True, True)
    """
    check_model(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    with evaluation_mode(model):
        try:
            for p in trained:
                p.requires_grad_(False)
            yield
        finally:
            for p in trained:
                p.requires_grad_(True)


def explained_classes(model: nn.Module, x: Tensor, target: int | Tensor | None, batch_size: int = 64) -> Tensor:
    """Return the class that is explained of each image, int64 ``(N,)``: the given one, or else the predicted one.

    Raises
    ------
    ValueError if `target` has the wrong shape or names a class that the model does not have.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> explained_classes(model, torch.rand(3, 1, 2, 2), target=1)
    tensor([1, 1, 1])
    """
    check_images(x)
    check_whole(batch_size, "batch_size")
    target, device = _check_target(target, len(x)), device_of(model, x)
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    with evaluating(model), torch.no_grad():
        if target is not None:
            _check_classes(logits_of(model, x[:1].to(device)), target)
            return target.to(x.device)
        batches = (batch.to(device, memory_format=torch.channels_last) for batch in x.split(batch_size))
        return torch.cat([logits_of(model, batch).argmax(1) for batch in batches]).to(x.device)


def device_of(model: nn.Module, x: Tensor) -> torch.device:
    """Return the device of the model's parameters, or that of `x` if it has none; raise `TypeError` for no tensor."""
    check_model(model)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor of images; got {type(x).__name__}")
    return next((p.device for p in model.parameters()), x.device)


# ---------------------------------------------------------------- gradients, and averages of them


def _gradient(model: nn.Module, x: Tensor, classes: Tensor | None, batch_size: int) -> Tensor:
    x = x.requires_grad_()
    logits = logits_of(model, x)
    return torch.autograd.grad(_scores(logits, classes).sum(), x)[0]


def _input_x_gradient(model: nn.Module, x: Tensor, classes: Tensor | None, batch_size: int) -> Tensor:
    return _gradient(model, x, classes, batch_size) * x


def _smooth_grad(
    model: nn.Module,
    x: Tensor,
    classes: Tensor,
    batch_size: int,
    *,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
) -> Tensor:
    check_whole(samples, "samples", high=MOST_COPIES)
    check_number(noise, "noise")
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(samples, *x.shape[1:], generator=generator).to(x)  # drawn in float32: the same for each dtype
    scale = noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    weights = torch.full((samples,), 1 / samples, dtype=x.dtype, device=x.device)
    vary = lambda image, sample: (draws[sample] * scale[image]).add_(x[image])
    return _mean_gradient(model, x, classes, batch_size, weights, vary)


def _integrated_gradients(
    model: nn.Module, x: Tensor, classes: Tensor, batch_size: int, *, baseline: Tensor, steps: int = 50
) -> Tensor:
    check_whole(steps, "steps", high=MOST_COPIES)
    nodes, weights = (
        torch.as_tensor(values, dtype=x.dtype, device=x.device) for values in np.polynomial.legendre.leggauss(steps)
    )
    nodes = ((nodes + 1) / 2).view(-1, 1, 1, 1)
    baseline = baseline.to(x.device)
    way = x - baseline
    vary = lambda image, step: (way[image] * nodes[step]).add_(baseline)
    return _mean_gradient(model, x, classes, batch_size, weights / 2, vary) * way


def _mean_gradient(
    model: nn.Module,
    x: Tensor,
    classes: Tensor,
    batch_size: int,
    weights: Tensor,
    vary: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the weighted sum over k of the gradients at ``vary(image, k)``.

    All pairs (image, k) form one long list that is cut into batches of one size, whatever the number of images.
    """
    mean = torch.zeros_like(x)
    for pairs in torch.arange(len(x) * len(weights), device=x.device).split(batch_size):
        image, k = pairs // len(weights), pairs % len(weights)
        varied = vary(image, k).to(memory_format=torch.channels_last).requires_grad_()
        # The weights go in at the logits, where they cost one number an image.
        score = (_scores(logits_of(model, varied), classes[image]) * weights[k]).sum()
        mean.index_add_(0, image, torch.autograd.grad(score, varied)[0])
    return mean


# ---------------------------------------------------------------- Captum's


def _grad_cam(model: nn.Module, x: Tensor, classes: Tensor, batch_size: int, *, layer: nn.Module) -> Tensor:
    from captum.attr import LayerGradCam

    coarse = LayerGradCam(functools.partial(logits_of, model), layer).attribute(x.requires_grad_(), classes)
    if coarse.dim() != 4:
        raise ValueError(f"grad_cam needs a layer with outputs (B, C, H, W); those of {type(layer).__name__} differ")
    return coarse


def _find_layer(model: nn.Module, layer: nn.Module | str | None, x: Tensor) -> nn.Module:
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in modules:
            raise ValueError(f"the model has no layer {layer!r}; its layers are {', '.join(filter(None, modules))}")
        layer = modules[layer]
    if not isinstance(layer, nn.Module | None):
        raise TypeError(f"layer must be a module or its name; got {type(layer).__name__}")
    candidates = [m for m in modules.values() if isinstance(m, nn.Conv2d)] if layer is None else [layer]
    with _calls_of(candidates) as called, torch.no_grad():
        logits_of(model, x)
    if not called:
        wanted = "a Conv2d" if layer is None else f"this {type(layer).__name__}"
        raise ValueError(f"grad_cam found no call of {wanted} in {type(model).__name__}; name a layer with layer=")
    # A map of one pixel is the same everywhere: the last layers of a large network can be as small as that.
    one_pixel = lambda output: isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() == 1
    with_places = [module for module, output in called if not one_pixel(output)]
    if not with_places:
        raise ValueError(f"grad_cam needs a layer with more than one pixel; those of {type(model).__name__} have one")
    return with_places[-1]


def _guided_backprop(model: nn.Module, x: Tensor, classes: Tensor, batch_size: int) -> Tensor:
    from captum.attr import GuidedBackprop

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        return GuidedBackprop(model).attribute(x.requires_grad_(), classes)


def _with_real_relus(model: nn.Module, x: Tensor) -> nn.Module:
    """Return `model`, or a copy that computes the same with an nn.ReLU before each PACT and in each ReLU6.

    Captum hooks modules of the class nn.ReLU only. ``pact(relu(x)) == pact(x)``, gradients included.
    """
    clipped = (PACT, nn.ReLU6)
    if any(isinstance(m, clipped) for m in model.modules()):
        model = copied(model)
        for module in model.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = False  # it would overwrite what the ReLU before it needs for its gradient
        for module in [m for m in model.modules() if isinstance(m, clipped)]:
            # The module itself becomes the pair, so that it is reached under every name that it has, also in a list.
            pair = nn.Sequential(nn.ReLU(), copy.copy(module))
            module.__class__, module.__dict__ = nn.Sequential, vars(pair)
    of_modules = set()
    note = lambda module, inputs, output: of_modules.add(output.grad_fn)
    with contextlib.ExitStack() as hooks:
        for module in [m for m in model.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]:
            hooks.enter_context(module.register_forward_hook(note))
        logits = model(x.detach().clone().requires_grad_())
    relus = _nodes(logits.grad_fn, "ReluBackward0")
    cut = {n for n in _nodes(logits.grad_fn, "HardtanhBackward0") if n._saved_min_val == 0}
    cut |= {n for n in _nodes(logits.grad_fn, "ClampBackward1") if n._saved_min == 0}
    if functions := (relus | cut) - of_modules:
        raise ValueError(
            f"guided_backprop reaches only ReLUs that are modules, and {type(model).__name__} calls ReLU as a function "
            f"{len(functions)} times; give each call an nn.ReLU()"
        )
    if not relus:
        raise ValueError(f"guided_backprop needs ReLUs, and {type(model).__name__} has none: use 'gradient'")
    return model


@contextlib.contextmanager
def _calls_of(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Any]]]:
    """Give a list to which each of `modules` is added, with its output, whenever it has been called."""
    called: list[tuple[nn.Module, Any]] = []
    note = lambda module, inputs, output: called.append((module, output))
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(note))
        yield called


def _nodes(node: Any, name: str) -> set[Any]:
    """Return the operations of this name that `node` follows from in autograd's graph."""
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {node for node in seen if node.name() == name}


# ---------------------------------------------------------------- the small parts


def _random(x: Tensor, *, seed: int = 0) -> Tensor:
    check_seed(seed)
    # Drawn on the CPU, so that one seed gives the same map on every device.
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(x), *x.shape[2:], generator=generator).to(x.device)


def _scores(logits: Tensor, classes: Tensor | None) -> Tensor:
    if classes is None:
        classes = logits.detach().argmax(1)
    _check_classes(logits, classes)
    return logits.gather(1, classes[:, None])[:, 0]


def _check_classes(logits: Tensor, classes: Tensor) -> None:
    low, high = (int(bound) for bound in classes.aminmax())
    if low < 0 or high >= logits.shape[1]:
        wrong = low if low < 0 else high
        raise ValueError(f"target must be from 0 to {logits.shape[1] - 1}, the model's classes; got {wrong}")


def _check_target(target: int | Tensor | None, number: int) -> Tensor | None:
    if target is None:
        return None
    found = type(target).__name__
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        target = torch.as_tensor(target)
        found = f"{target.dtype} of shape {tuple(target.shape)}"
        if target.dtype in (torch.int64, torch.int32, torch.uint8) and target.shape in ((), (number,)):
            return target.long().expand(number)
    raise ValueError(f"target must be None, a class number or int64 ({number},), one class an image; got {found}")


def _baseline(x: Tensor, baseline: float | Tensor | None) -> Tensor:
    """Return the image that stands for "nothing there": float ``(1, C or 1, H or 1, W or 1)``."""
    if baseline is None:
        return black(x.detach()) if len(x) else x.new_zeros(1, 1, 1, 1)
    return as_pixels(baseline, x[:1], "baseline").expand(1, *x.shape[1:])


def _warn_if_incomplete(model: nn.Module) -> None:
    if any(isinstance(m, PACT) and m.bits < 32 for m in model.modules()):
        warnings.warn(
            "integrated gradients do not add up to f(x) - f(baseline) on a quantized network, however many the steps: "
            "its activations are staircases whose straight-through gradient is not their slope; "
            "completeness_error measures by how much",
            stacklevel=3,
        )


_METHODS: dict[str, Callable[..., Tensor]] = {
    "gradient": _gradient,
    "input_x_gradient": _input_x_gradient,
    "smooth_grad": _smooth_grad,
    "integrated_gradients": _integrated_gradients,
    "grad_cam": _grad_cam,
    "guided_backprop": _guided_backprop,
    "random": _random,
}
