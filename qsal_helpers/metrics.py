"""How good a saliency map is: is it faithful to the model, focused, on the object, and does it depend on the weights?

Every metric returns one number an image. No metric is the truth: deletion and insertion show the model images unlike
any it was trained on, and a focused map may be focused on the wrong thing. So use several, and set the figures of a
random map (`saliency_map(..., method="random")`) and of a second model, trained with another seed, beside them.

A map that holds NaN or infinity gets NaN; the other maps of the batch are not disturbed.

All of them raise `TypeError` or `ValueError`, with a sentence that says what would fit, for a model that is none, for
maps, images or masks whose shapes or dtypes do not go together, and for options out of range.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import check_flag, check_number, check_seed, check_whole, described
from ._fills import as_pixels, black, blurred
from ._forward import copied, logits_of
from ._random import seeded
from .saliency import MOST_COPIES, _calls_of, device_of, evaluating, explained_classes, saliency_map

# ---------------------------------------------------------------- faithful to the model?


def deletion_auc(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: int | Tensor | None = None,
    steps: int = 28,
    fill: str | float | Sequence[float] | Tensor = "black",
    batch_size: int = 128,
    return_curve: bool = False,
) -> Tensor:
    """Delete pixels, the most salient first, and return the area under the curve of the class's probability.

    Petsiuk, Das and Saenko 2018 (RISE), section 4.1. The lower, the better: a faithful map names the pixels whose loss
    hurts first. The area is the trapezoidal mean over the fraction of deleted pixels, from 0 to 1.

    Parameters
    ----------
    model : maps ``(B, C, H, W)`` to logits; used in evaluation mode and left as it was.
    x : normalised images, float ``(N, C, H, W)``.
    maps : ``(N, H, W)``, largest = most salient. Of equal pixels the first in reading order goes first.
    target : the class whose softmax probability is followed, one or ``(N,)``; ``None``: each image's predicted class.
    steps : in how many steps of about equal size the pixels are deleted, all channels of a pixel together.
    fill : what is left in a deleted pixel. "black": the smallest value of `x` in each channel; "blur": the image after
        a 7 x 7 box blur (our choice; the paper blurs larger images with a Gaussian); a number, one number a channel,
        or an image or images.
    batch_size : how many images go through the model at once.
    return_curve : return the probabilities themselves instead of the area.

    Returns
    -------
    float32 ``(N,)``, or with `return_curve` ``(N, steps + 1)``; column k is after ``round(k * H * W / steps)`` pixels.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    >>> x = torch.ones(1, 1, 2, 2)
    >>> good, bad = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    >>> deletion_auc(model, x, good, steps=4, fill=0.0, return_curve=True)
    tensor([[0.9820, 0.5000, 0.5000, 0.5000, 0.5000]])
    >>> deletion_auc(model, x, good, steps=4, fill=0.0) < deletion_auc(model, x, bad, steps=4, fill=0.0)
    tensor([True])
    """
    maps = _check_maps(maps, x)
    check_whole(steps, "steps", high=MOST_COPIES)
    check_whole(batch_size, "batch_size")
    check_flag(return_curve, "return_curve")
    if not len(x):
        return x.new_empty((0, steps + 1) if return_curve else 0, dtype=torch.float32)
    home, device, finite = x.device, device_of(model, x), _finite(maps)
    target = explained_classes(model, x, target, batch_size).to(device)
    x, maps, pixels = x.to(device), maps.to(device), maps[0].numel()
    deleted = torch.tensor([round(k * pixels / steps) for k in range(steps + 1)], device=device)
    empty = _filled(x, fill)
    order = maps.flatten(1).nan_to_num().argsort(dim=1, descending=True, stable=True)
    position = order.argsort(dim=1).view(len(x), 1, *x.shape[2:])
    # Pixels that hold the fill already change nothing: a step that touches only such pixels needs no forward pass.
    differs = (x != empty).any(1).flatten(1).gather(1, order)
    changed = F.pad(differs.cumsum(1), (1, 0))[:, deleted]
    new = F.pad(changed[:, 1:] != changed[:, :-1], (1, 0), value=True)
    found = []
    with evaluating(model), torch.inference_mode():
        for rows in new.flatten().nonzero()[:, 0].split(batch_size):
            image, k = rows // len(deleted), rows % len(deleted)
            replaced = position[image] < deleted[k].view(-1, 1, 1, 1)
            perturbed = torch.where(replaced, empty[image], x[image])
            logits = model(perturbed.to(memory_format=torch.channels_last))
            if logits.shape[1] < 2:
                raise ValueError(
                    "the probability of the only class is always 1; give the model a logit for each of two"
                )
            found.append(logits.softmax(1).gather(1, target[image][:, None])[:, 0].float())
    curve = torch.cat(found)[new.flatten().cumsum(0) - 1].view_as(changed).to(home)
    curve = torch.where(finite[:, None], curve, math.nan)
    return curve if return_curve else torch.trapezoid(curve, (deleted / pixels).to(curve), dim=1)


def insertion_auc(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: int | Tensor | None = None,
    steps: int = 28,
    fill: str | float | Sequence[float] | Tensor = "black",
    batch_size: int = 128,
    return_curve: bool = False,
) -> Tensor:
    """Insert pixels into an empty image, the most salient first; the counterpart of `deletion_auc`.

    The higher, the better. `fill` is the image at the start; the last column of the curve is the image itself.
    Parameters and results are those of `deletion_auc`.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    >>> maps = torch.tensor([[[9.0, 0.0], [0.0, 0.0]]])
    >>> insertion_auc(model, torch.ones(1, 1, 2, 2), maps, steps=4, fill=0.0, return_curve=True)
    tensor([[0.5000, 0.9820, 0.9820, 0.9820, 0.9820]])
    """
    maps = _check_maps(maps, x)
    target = explained_classes(model, x, target, batch_size)
    # To insert an image is to delete the empty one, with the image as its fill.
    empty = _filled(x, fill) if len(x) else x
    return deletion_auc(model, empty, maps, target, steps, x, batch_size, return_curve)


def _filled(x: Tensor, fill: str | float | Sequence[float] | Tensor) -> Tensor:
    """Return what is left of x when all its pixels are deleted, of the same shape."""
    named = {"black": black, "blur": blurred}.get(fill) if isinstance(fill, str) else None
    return (named(x) if named else as_pixels(fill, x, "fill", "'black', 'blur', ")).expand_as(x)


def infidelity(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: int | Tensor | None = None,
    noise: float = 0.2,
    samples: int = 16,
    normalize: bool = False,
    seed: int = 0,
    batch_size: int = 128,
) -> Tensor:
    """Return how badly a map predicts what a small change of the image does to the logit.

    Yeh et al. 2019, definition 2.1, through Captum: the mean of ``(I . map - (f(x) - f(x - I)))**2`` over random
    changes I, here Gaussian and equal in all channels. The lower, the better; 0 for the gradient of a linear model.

    Parameters
    ----------
    maps : ``(N, H, W)``, **signed**: made with ``absolute=False``.
    target : as in `deletion_auc`; f is its logit.
    noise : standard deviation of I, in units of the normalised `x`.
    samples : how many changes are drawn for each image.
    normalize : rescale each map by the factor that suits it best first, so that only its pattern counts.
    seed, batch_size : of the changes, and how many images share one draw of them; both change the estimate a little.

    Returns
    -------
    float32 ``(N,)``, in squared logits.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> maps = saliency_map(model, x, method="gradient", absolute=False)
    >>> bool((infidelity(model, x, maps) < 1e-10).all())
    True
    """
    from captum.metrics import infidelity as captum_infidelity

    maps = _check_maps(maps, x)
    check_number(noise, "noise", high=1e30)
    check_whole(samples, "samples", high=MOST_COPIES)
    check_flag(normalize, "normalize")
    check_seed(seed)
    check_whole(batch_size, "batch_size")
    target, device = explained_classes(model, x, target, batch_size), device_of(model, x)

    def perturb(batch: Tensor) -> tuple[Tensor, Tensor]:
        change = noise * torch.randn_like(batch[:, :1]).expand_as(batch)
        return change, batch - change

    found = []
    with evaluating(model), torch.no_grad(), seeded(seed, device):
        for start in range(0, len(x), batch_size):
            here = slice(start, start + batch_size)
            batch = x[here].to(device)
            # The change is the same in all channels, so only the sum of a pixel's channels matters.
            attributions = (maps[here].to(batch) / x.shape[1]).unsqueeze(1).expand_as(batch)
            found.append(
                captum_infidelity(
                    functools.partial(logits_of, model),
                    perturb,
                    batch,
                    attributions,
                    target=target[here].to(device),
                    n_perturb_samples=samples,
                    max_examples_per_batch=min(batch_size, samples * len(batch)),
                    normalize=normalize,
                )
            )
    result = torch.cat(found).float().to(x.device) if found else x.new_empty(0, dtype=torch.float32)
    return torch.where(_finite(maps), result, math.nan)


# ---------------------------------------------------------------- focused?


def gini(maps: Tensor) -> Tensor:
    """Return the Gini index of each map's magnitudes: how unequally they are spread over the pixels.

    Hurley and Rickard 2009, table 1. 0: all pixels equal; ``1 - 1 / (H * W)``: one pixel has it all. Negative values
    count by their magnitude. A map of zeros gets 0.

    Parameters
    ----------
    maps : ``(N, H, W)``.

    Returns
    -------
    float32 ``(N,)``.

    Examples
    --------
    >>> gini(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 5.0]]]))
    tensor([0.0000, 0.7500])
    """
    shares = _shares(maps).sort(1).values
    n = shares.shape[1]
    weights = (2 * torch.arange(1, n + 1, dtype=shares.dtype, device=shares.device) - n - 1) / n
    return (shares @ weights).float()


def entropy(maps: Tensor) -> Tensor:
    """Return the Shannon entropy of each map's magnitudes, as shares of their sum, in nats.

    0: one pixel has it all; ``log(H * W)``: all pixels equal. A map of zeros counts as one with all pixels equal.
    Takes and returns what `gini` does.

    Examples
    --------
    >>> entropy(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 5.0]]]))
    tensor([1.3863, 0.0000])
    """
    shares = _shares(maps)
    return -torch.xlogy(shares, shares).sum(1).float() + 0.0


# ---------------------------------------------------------------- on the object?


def object_mask(images: Tensor) -> Tensor:
    """Return which pixels belong to the object, on images whose background is black (MNIST, FashionMNIST).

    Parameters
    ----------
    images : raw, uint8 ``(N, C, H, W)``.

    Returns
    -------
    bool ``(N, H, W)``.

    Examples
    --------
    >>> object_mask(torch.tensor([[[[0, 200], [7, 0]]]], dtype=torch.uint8)).int().tolist()
    [[[0, 1], [1, 0]]]
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(f"object_mask takes raw images, uint8 (N, C, H, W), not normalised; got {described(images)}")
    return (images > 0).any(1)


def foreground_mass(maps: Tensor, mask: Tensor) -> Tensor:
    """Return the share of each map's magnitude that lies on the object, 0 to 1.

    The relevance mass accuracy of Arras et al. 2022 (CLEVR-XAI). A map of zeros counts as one with all pixels equal, so
    it gets the object's share of the area: chance level.

    Parameters
    ----------
    maps : ``(N, H, W)``.
    mask : bool ``(N, H, W)``, from `object_mask`.

    Returns
    -------
    float32 ``(N,)``.

    Examples
    --------
    >>> mask = torch.tensor([[[True, False], [False, False]]])
    >>> foreground_mass(torch.tensor([[[3.0, -1.0], [0.0, 0.0]]]), mask)
    tensor([0.7500])
    """
    _check_mask(mask, maps)
    return (_shares(maps) * mask.flatten(1)).sum(1).float()


def pointing_game(maps: Tensor, mask: Tensor) -> Tensor:
    """Return 1 where a map's largest value lies on the object, else 0.

    Zhang et al. 2018 (excitation backprop), section 4.1, without a margin: these images are small. If several pixels
    share the largest value, it is the fraction of them on the object, so a constant map gets chance level.
    Takes and returns what `foreground_mass` does; the mean over the images is the usual figure.

    Examples
    --------
    >>> mask = torch.tensor([[[True, False], [False, False]]])
    >>> pointing_game(torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]), mask)
    tensor([1.])
    """
    _check_mask(mask, maps)
    values = _check_maps(maps).flatten(1)
    largest = values == values.amax(1, keepdim=True)
    hits = (largest & mask.flatten(1)).sum(1) / largest.sum(1)
    return torch.where(_finite(maps), hits, math.nan).float()


# ---------------------------------------------------------------- do two maps agree?


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps, -1 to 1.

    Equal values share the mean of their ranks. NaN if one of the two maps is constant: it ranks nothing.

    Parameters
    ----------
    maps, others : ``(N, H, W)``, for instance of two models.

    Returns
    -------
    float32 ``(N,)``.

    Examples
    --------
    >>> maps = torch.tensor([[[1.0, 2.0], [3.0, 9.0]]])
    >>> rank_correlation(maps, -maps.exp())
    tensor([-1.])
    """
    _check_pair(maps, others)
    first, second = (_ranks(m.flatten(1)) for m in (maps, others))
    covariance = (first * second).sum(1)
    norm = first.square().sum(1).sqrt() * second.square().sum(1).sqrt()
    both = _finite(maps) & _finite(others)
    return torch.where(both, covariance / norm, math.nan).float()


def _ranks(values: Tensor) -> Tensor:
    """Return each value's rank in its row, from 0, equal values sharing the mean; minus the mean rank."""
    ordered, values = values.nan_to_num().sort(1).values, values.nan_to_num().contiguous()
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2 - (values.shape[1] - 1) / 2


def top_k_overlap(maps: Tensor, others: Tensor, fraction: float = 0.1) -> Tensor:
    """Return which part of the most salient pixels of one map are among the most salient of the other, 0 to 1.

    The top-k intersection of Ghorbani et al. 2019 (Interpretation of neural networks is fragile). Chance level is
    `fraction`. Of equal pixels the first in reading order counts as more salient.

    Parameters
    ----------
    maps, others : ``(N, H, W)``.
    fraction : how much of the image is looked at, above 0 and at most 1; at least one pixel.

    Returns
    -------
    float32 ``(N,)``.

    Examples
    --------
    >>> maps, others = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 3.0], [2.0, 4.0]]])
    >>> top_k_overlap(maps, others, fraction=0.5)
    tensor([0.5000])
    """
    _check_pair(maps, others)
    check_number(fraction, "fraction", high=1)
    if fraction == 0:
        raise ValueError("fraction must be above 0; got 0")
    k = max(1, round(fraction * maps[0].numel())) if len(maps) else 1
    shared = (_top(maps, k) & _top(others, k)).sum(1) / k
    return torch.where(_finite(maps) & _finite(others), shared, math.nan).float()


def _top(maps: Tensor, k: int) -> Tensor:
    values = maps.flatten(1).nan_to_num()
    chosen = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, chosen, True)


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity of each pair of maps, -1 to 1; 1 for equal ones.

    Wang et al. 2004, with their 11 x 11 Gaussian window (sigma 1.5), K1 = 0.01 and K2 = 0.03, without padding. Each map
    is first stretched to 0 ... 1 by itself, because the maps of two models have no common unit; a constant map becomes
    zeros.

    Parameters
    ----------
    maps, others : ``(N, H, W)``, H and W at least 11.

    Returns
    -------
    float32 ``(N,)``.

    Examples
    --------
    >>> maps = torch.rand(1, 28, 28)
    >>> ssim(maps, 5 * maps)
    tensor([1.])
    """
    _check_pair(maps, others)
    if min(maps.shape[1:]) < 11:
        raise ValueError(f"ssim needs maps of at least 11 x 11 pixels; got {tuple(maps.shape[1:])}")
    a, b = (_stretched(m.double().unsqueeze(1)) for m in (maps, others))
    window = torch.exp(-torch.arange(-5, 6, dtype=torch.float64, device=a.device).square() / (2 * 1.5**2))
    window = window / window.sum()
    blur = lambda m: F.conv2d(F.conv2d(m, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    result = similarity.mean((1, 2, 3))
    return torch.where(_finite(maps) & _finite(others), result, math.nan).float()


def _stretched(maps: Tensor) -> Tensor:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)


# ---------------------------------------------------------------- does a map depend on the weights, and on noise?


@torch.inference_mode(False)  # the layers are set anew, and gradients are needed
def randomisation_check(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    method: str = "gradient",
    seed: int = 0,
    return_curve: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, list[str]]:
    """Replace the trained weights by random ones and return the rank correlation of the maps before and after.

    Adebayo et al. 2018, sections 3.1 and 3.2. Near 0: the map depends on what the model has learned. Near 1: it would
    look the same for an untrained model, so it cannot explain the trained one.

    Parameters
    ----------
    target : the class that is explained before and after; ``None``: the class that the trained model predicts.
    method, **options : of `saliency_map`.
    seed : of the random weights.
    return_curve : randomise in a cascade, layer by layer from the output down, instead of all at once. Batch-norm is
        reset with the layer before it. PACT's alphas stay.

    Returns
    -------
    float32 ``(N,)``, or with `return_curve` a pair: ``(N, layers)``, whose last column has all layers random, and
    the names of the layers in the order of randomisation.

    Examples
    --------
    >>> from qsal_helpers import build_model
    >>> curve, layers = randomisation_check(build_model("lenet5"), torch.rand(2, 1, 28, 28), return_curve=True)
    >>> curve.shape, layers
    (torch.Size([2, 5]), ['fc3', 'fc2', 'fc1', 'conv2', 'conv1'])
    """
    check_flag(return_curve, "return_curve")
    check_seed(seed)
    target = explained_classes(model, x, target)
    if isinstance(layer := options.get("layer"), nn.Module):  # by its name it is found in the copy, too
        options["layer"] = {module: name for name, module in model.named_modules()}.get(layer, layer)
    before = saliency_map(model, x, target, method, **options)
    randomised = copied(model)
    resettable = [m for m in randomised.modules() if hasattr(m, "reset_parameters")]
    with evaluating(randomised), torch.no_grad(), _calls_of(resettable) as called:
        logits_of(randomised, x[:1].to(device_of(model, x)))
    # In order of execution, which need not be that of definition; what was not called comes last.
    resettable = list(dict.fromkeys([*(module for module, _ in called), *resettable]))
    layers = [m for m in resettable if getattr(m, "weight", None) is not None and m.weight.dim() > 1]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer whose weights could be randomised")
    # A weight that is computed from others, as in a pruned layer, would come back with the next call.
    real = [m for m in resettable if isinstance(getattr(m, "weight", None), nn.Parameter | None)]
    reached = {id(parameter) for m in real for parameter in m.parameters(recurse=False)}
    if kept := [n for n, p in randomised.named_parameters() if p.dim() > 1 and id(p) not in reached]:
        raise ValueError(
            f"{', '.join(kept)} of {type(model).__name__} cannot be randomised: its module has no "
            "reset_parameters(), or computes its weight from it (torch.nn.utils has functions "
            "that undo this: prune.remove, remove_weight_norm)"
        )
    columns = []
    with seeded(seed, device_of(model, x)):
        for module in reversed(resettable):
            module.reset_parameters()
            if return_curve and module in layers[1:]:
                columns.append(rank_correlation(before, saliency_map(randomised, x, target, method, **options)))
        columns.append(rank_correlation(before, saliency_map(randomised, x, target, method, **options)))
    names = {module: name for name, module in randomised.named_modules()}
    return (torch.stack(columns, 1), [names[m] for m in reversed(layers)]) if return_curve else columns[0]


def sensitivity_max(
    model: nn.Module,
    x: Tensor,
    target: int | Tensor | None = None,
    method: str = "gradient",
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Return the largest relative change of a map under small random changes of the image.

    Yeh et al. 2019, definition 2.3, through Captum: the maximum of ``|map(x + d) - map(x)| / |map(x)|`` over uniform
    d in [-radius, radius]. The lower, the steadier; 0 for the gradient of a linear model. A steady map need not
    be right: a constant one is the steadiest.

    Parameters
    ----------
    target : the class that is explained, also in the changed images; ``None``: the predicted class of `x`.
    method, **options : of `saliency_map`, which has its defaults for its own samples and seed.
    radius : in units of the normalised `x`.
    samples : how many changes are drawn for each image.

    Returns
    -------
    float32 ``(N,)``.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> sensitivity_max(model, torch.rand(3, 1, 2, 2))
    tensor([0., 0., 0.])
    """
    from captum.metrics import sensitivity_max as captum_sensitivity_max

    check_number(radius, "radius", high=1e30)
    check_whole(samples, "samples", high=MOST_COPIES)
    check_seed(seed)
    batch_size = options.get("batch_size", 64)
    check_whole(batch_size, "batch_size")
    target, device = explained_classes(model, x, target), device_of(model, x)
    found = []
    with seeded(seed, device):
        for start in range(0, len(x), batch_size):
            here = slice(start, start + batch_size)
            batch = x[here].to(device)
            # Captum hands over a tuple of inputs and wants a tuple of maps. It repeats the targets for its copies of
            # the images, but not the target of a single image.
            explain = lambda images, target: (
                saliency_map(model, images[0].to(x.dtype), target.expand(len(images[0])), method, **options),
            )
            changes = {"perturb_radius": radius, "n_perturb_samples": samples}
            found.append(captum_sensitivity_max(explain, batch, target=target[here].to(device), **changes))
    return torch.cat(found).float().to(x.device) if found else x.new_empty(0, dtype=torch.float32)


# ---------------------------------------------------------------- the small parts


def _shares(maps: Tensor) -> Tensor:
    """Return each pixel's share of its map's total magnitude, float64 ``(N, H * W)``; equal shares if that is 0."""
    magnitudes = _check_maps(maps).flatten(1).double().abs()
    total = magnitudes.sum(1, keepdim=True)
    shares = torch.where(total > 0, magnitudes / total, 1 / max(1, magnitudes.shape[1]))
    return torch.where(_finite(maps)[:, None], shares, math.nan)


def _finite(maps: Tensor) -> Tensor:
    return maps.isfinite().flatten(1).all(1)


def _check_maps(maps: Tensor, x: Tensor | None = None) -> Tensor:
    if not isinstance(maps, Tensor) or not maps.is_floating_point() or maps.dim() != 3:
        raise ValueError(f"maps must be floating point of shape (N, H, W); got {described(maps)}")
    if x is not None and not isinstance(x, Tensor):
        raise TypeError(f"x must be images, float (N, C, H, W); got {type(x).__name__}")
    if x is not None and (x.dim() != 4 or (len(x), *x.shape[2:]) != tuple(maps.shape)):
        raise ValueError(f"maps (N, H, W) and images (N, C, H, W) must fit; got {tuple(maps.shape)}, {tuple(x.shape)}")
    return maps


def _check_pair(maps: Tensor, others: Tensor) -> None:
    if _check_maps(maps).shape != _check_maps(others).shape:
        raise ValueError(f"the maps must have one shape; got {tuple(maps.shape)} and {tuple(others.shape)}")


def _check_mask(mask: Tensor, maps: Tensor) -> None:
    _check_maps(maps)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != maps.shape:
        wanted = f"bool of the maps' shape {tuple(maps.shape)}, as object_mask gives"
        raise ValueError(f"mask must be {wanted}; got {described(mask)}")
