"""Saliency-guided training (Ismail, Corrada Bravo and Feizi, NeurIPS 2021) as one objective."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import check_choice, check_flag, check_images, check_model, check_number, check_whole, described
from ._fills import black, blurred
from ._forward import at_least_float32, evaluation_mode, logits_of
from ._random import random_state_kept

FILLS = ("uniform", "mean", "black", "blur")
RANKINGS = ("magnitude", "signed", "random")


def mask_least_salient(
    x: Tensor,
    saliency: Tensor,
    ratio: float,
    rank_by: str = "magnitude",
    fill: str | Sequence[float] = "uniform",
) -> Tensor:
    """Return `x` with its least salient pixels replaced.

    In each image exactly ``round(ratio * H * W)`` pixels are replaced, in all channels together. Of pixels with equal
    saliency the first in reading order go first.

    Parameters
    ----------
    x : images, float ``(B, C, H, W)``.
    saliency : float ``(B, C, H, W)``, usually the gradient of the true class's output with respect to `x`.
    ratio : fraction of the pixels to replace, 0 to 1.
    rank_by : "magnitude", smallest ``|saliency|`` first (the paper's prose), or "signed", most negative first
        (the authors' code, unless told otherwise, and the default of `SaliencyGuided`), or "random", any pixels,
        whatever `saliency` says: the control that shows what the ranking does. Channels are summed, after taking the
        magnitude.
    fill : what is put there. "uniform": random, between the smallest and the largest value of that image and channel
        (the paper); "mean": that image and channel's mean; "black": the smallest value of the batch in that channel;
        "blur": the image after a 7 x 7 box blur; or one number a channel, in the units of `x`.

    Raises
    ------
    ValueError for shapes that differ, a ratio outside 0 to 1, or an unknown `rank_by` or `fill`; TypeError if `x` or
    `saliency` is not a floating-point tensor.

    Examples
    --------
    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> saliency = torch.tensor([[[[0.9, -0.1], [0.2, -0.8]]]])
    >>> mask_least_salient(x, saliency, 0.5, fill="mean").tolist()
    [[[[1.0, 2.5], [2.5, 4.0]]]]
    """
    check_images(x, "x")
    chosen = least_salient(saliency, ratio, rank_by)
    if saliency.shape != x.shape:
        raise ValueError(f"x and saliency must have one shape; got {tuple(x.shape)} and {tuple(saliency.shape)}")
    return torch.where(chosen, _filling(x, fill), x) if x.numel() else x.clone()


def least_salient(saliency: Tensor, ratio: float, rank_by: str = "magnitude") -> Tensor:
    """Return which pixels `mask_least_salient` replaces: bool ``(B, 1, H, W)``.

    A pixel whose saliency is not a number counts as the most salient.

    Examples
    --------
    >>> least_salient(torch.tensor([[[[0.9, -0.1], [0.2, -0.8]]]]), 0.25).int().tolist()
    [[[[0, 1], [0, 0]]]]
    """
    check_images(saliency, "saliency")
    check_number(ratio, "the mask ratio", high=1)
    check_choice(rank_by, "rank_by", RANKINGS)
    batch, _, height, width = saliency.shape
    if rank_by == "random":
        score = torch.rand(batch, height * width, device=saliency.device)
    else:
        score = (saliency.abs() if rank_by == "magnitude" else saliency).sum(1).flatten(1)
        score = score.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    k = round(ratio * height * width)
    if k == 0 or batch == 0:
        return torch.zeros(batch, 1, height, width, dtype=torch.bool, device=saliency.device)
    # The k-th smallest value instead of a sort; where several pixels share it, as many as are still missing.
    edge = score.kthvalue(k, dim=1, keepdim=True).values
    below, at_edge = score < edge, score == edge
    missing = k - below.sum(1, keepdim=True)
    chosen = below | (at_edge & (at_edge.cumsum(1) <= missing))
    return chosen.view(batch, 1, height, width)


def _filling(x: Tensor, fill: str | Sequence[float]) -> Tensor:
    if isinstance(fill, str):
        if fill == "uniform":
            # Over planes that lie in one piece this is ten times faster than over channels_last.
            planes = x.contiguous()
            low, high = planes.amin((2, 3), keepdim=True), planes.amax((2, 3), keepdim=True)
            return torch.rand_like(x).mul_(high - low).add_(low)
        if fill == "mean":
            return x.mean((2, 3), keepdim=True)
        if fill == "black":
            return black(x)
        if fill == "blur":
            return blurred(x)
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, or one number a channel; got {fill!r}")
    try:
        values = torch.as_tensor(fill, dtype=x.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"fill must be a name or one number a channel; got {fill!r}") from error
    if values.shape != (x.shape[1],) or not bool(values.isfinite().all()):
        raise ValueError(f"fill needs one finite number for each of the {x.shape[1]} channels; got {fill!r}")
    return values.to(x.device).view(1, -1, 1, 1)


@dataclass
class SaliencyGuided:
    """The objective ``CE(f(x), y) + weight * KL(f(x) || f(x~))``, where x~ is x with its least salient pixels replaced.

    Call it as ``objective(model, x, y) -> loss``, or hand it to `fit`. With the defaults one pass serves two purposes:
    the cross-entropy's own backward pass also gives the gradient at the input that ranks the pixels, so a step costs
    two plain steps. The procedure as published needs a saliency pass of its own; see `as_published`.

    The defaults: the ranking is that of the authors' code, not of the paper's prose; lesson 08 holds the two against
    each other over five seeds and four precisions. "loss" and `detach_clean` are there for their cost: a step measured
    2.27 plain steps on "cnn" and 2.03 on ResNet-20, as published 2.96 and 2.74 (``benchmarks/RESULTS.md``). The last
    three choices follow from what the terms should mean. ``python -m benchmarks.guided_choices`` sets the whole beside
    the published procedure, over five seeds of clothes; on digits the published one has the better map, and "logit"
    helps the default a little there, for a loss on clothes (lesson 08).

    Parameters
    ----------
    mask_ratio : fraction of the pixels that is replaced, 0 to 1. At 0 this is plain training, to the bit.
    weight : lambda, the weight of the KL term.
    rank_by, fill : see `mask_least_salient`.
    saliency : "loss", minus the gradient of the cross-entropy, or "logit", the gradient of the true class's
        logit (the paper). "logit" costs one more backward pass to the input.
    detach_clean : whether the KL term moves only the prediction for x~ (True), or both (False, the paper).
    ramp_steps : the mask ratio grows from 0 to `mask_ratio` over so many calls; 0 starts with it in full.
    freeze_statistics : keep batch-norm's running statistics free of masked images.
    share_dropout : use the same dropout masks for x and x~; otherwise KL is above 0 even where x~ equals x.
    eval_saliency : take the saliency from a separate pass in evaluation mode (the paper).

    Attributes
    ----------
    terms : the last call's "cross_entropy" and "divergence" (nats, unweighted), as detached tensors.

    Examples
    --------
    >>> from qsal_helpers import build_model
    >>> objective = SaliencyGuided(mask_ratio=0.5)
    >>> loss = objective(build_model("lenet5"), torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3]))
    >>> loss.backward()
    """

    mask_ratio: float = 0.5
    weight: float = 1.0
    rank_by: str = "signed"
    fill: str | Sequence[float] = "uniform"
    saliency: str = "loss"
    detach_clean: bool = True
    ramp_steps: int = 0
    freeze_statistics: bool = True
    share_dropout: bool = True
    eval_saliency: bool = False
    terms: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _calls: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_number(self.mask_ratio, "mask_ratio", high=1)
        check_number(self.weight, "weight")
        check_whole(self.ramp_steps, "ramp_steps", low=0)
        check_choice(self.rank_by, "rank_by", RANKINGS)
        if isinstance(self.fill, str) and self.fill not in FILLS:
            raise ValueError(f"fill must be one of {', '.join(FILLS)}, or one number a channel; got {self.fill!r}")
        check_choice(self.saliency, "saliency", ("loss", "logit"))
        for name in ("detach_clean", "freeze_statistics", "share_dropout", "eval_saliency"):
            check_flag(getattr(self, name), name)

    @classmethod
    def as_published(cls, mask_ratio: float = 0.5) -> SaliencyGuided:
        """Return the authors' own procedure, as their code runs it: signed ranking, three passes, nothing shared."""
        return cls(
            mask_ratio,
            rank_by="signed",
            saliency="logit",
            detach_clean=False,
            freeze_statistics=False,
            share_dropout=False,
            eval_saliency=True,
        )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss, a scalar, for images x ``(B, C, H, W)`` and labels y int64 ``(B,)``."""
        check_model(model)
        check_images(x, "x")
        if len(x) == 0 or not isinstance(y, Tensor) or y.shape != x.shape[:1]:
            raise ValueError(f"x and y must hold the same images, at least one; got {tuple(x.shape)}, {described(y)}")
        if x.grad_fn is not None:
            raise ValueError("x comes with a gradient, which a mask cuts; put what makes x into the model, or detach x")
        ratio = self.mask_ratio * min(1.0, self._calls / self.ramp_steps) if self.ramp_steps else self.mask_ratio
        self._calls += 1
        if ratio == 0:
            loss = F.cross_entropy(logits_of(model, x, y), y)
            self.terms = {"cross_entropy": loss.detach(), "divergence": torch.zeros_like(loss)}
            return loss

        if not torch.is_grad_enabled():
            raise ValueError("SaliencyGuided ranks pixels by a gradient, so it cannot be called under torch.no_grad()")
        before = _random_state(x) if self.share_dropout else None
        if self.eval_saliency:
            saliency = self.saliency_in_eval_mode(model, x, y)
        else:
            x = x.detach().requires_grad_()
        logits = logits_of(model, x, y)
        cross_entropy = F.cross_entropy(logits, y)
        clean_term = cross_entropy
        if not self.eval_saliency:
            parameters = [p for p in model.parameters() if p.requires_grad]
            # A hook on a parameter would be called twice, for torch.autograd.grad calls it, too.
            hooked = any(p._backward_hooks for p in parameters)
            if self.saliency == "loss" and self.detach_clean and not hooked:
                saliency, *gradients = _gradients(cross_entropy, [x, *parameters])
                # Not in place: the tensor can be the same one as a parameter's gradient.
                saliency = -saliency
                clean_term = _with_gradients(cross_entropy, parameters, gradients)
            else:
                score = self._score(logits, cross_entropy, y)
                (saliency,) = _gradients(score, [x], retain_graph=True)
            x = x.detach()

        masked = mask_least_salient(x, saliency, ratio, self.rank_by, self.fill)
        with _running_statistics_kept(model, self.freeze_statistics), _random_state_from(before, x):
            masked_logits = model(masked)
        reference = logits.detach() if self.detach_clean else logits
        answer, wanted = (F.log_softmax(at_least_float32(each), 1) for each in (masked_logits, reference))
        divergence = F.kl_div(answer, wanted, reduction="batchmean", log_target=True)
        self.terms = {"cross_entropy": cross_entropy.detach(), "divergence": divergence.detach()}
        return clean_term + self.weight * divergence

    def _score(self, logits: Tensor, cross_entropy: Tensor, y: Tensor) -> Tensor:
        return logits.gather(1, y[:, None]).sum() if self.saliency == "logit" else -cross_entropy

    def saliency_in_eval_mode(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return what ranks the pixels of x, of the same shape, with `model` in evaluation mode, as it was before."""
        x = x.detach().requires_grad_()
        with evaluation_mode(model):
            logits = logits_of(model, x, y)
            return _gradients(self._score(logits, F.cross_entropy(logits, y), y), [x])[0]


def _gradients(score: Tensor, inputs: list[Tensor], retain_graph: bool = False) -> tuple[Tensor | None, ...]:
    """Return the gradients of `score`, the first of them at the images; None for a parameter that it does not use."""
    found: tuple[Tensor | None, ...] = (None,)
    if score.requires_grad:
        found = torch.autograd.grad(score, inputs, retain_graph=retain_graph, allow_unused=True)
    if found[0] is None:
        raise ValueError("SaliencyGuided needs a gradient at x, but the model's output does not depend on x")
    return found


class _GivenGradients(torch.autograd.Function):
    """A constant whose gradients are known already: hands them to `backward`, so the loss stays an honest loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # which it is with create_graph alone
            raise RuntimeError(
                "SaliencyGuided's loss has no second derivative; choose detach_clean=False or saliency='logit'"
            )
        return None, None, *(g * grad for g in ctx.gradients)


def _with_gradients(value: Tensor, parameters: list[Tensor], gradients: list[Tensor | None]) -> Tensor:
    used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    return _GivenGradients.apply(value.detach(), [g for _, g in used], *(p for p, _ in used))


def _random_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


@contextlib.contextmanager
def _random_state_from(state: Tensor | None, x: Tensor) -> Iterator[None]:
    if state is None:
        yield
        return
    with random_state_kept(x.device):
        if x.is_cuda:
            torch.cuda.set_rng_state(state, x.device)
        else:
            torch.set_rng_state(state)
        yield


@contextlib.contextmanager
def _running_statistics_kept(model: nn.Module, keep: bool) -> Iterator[None]:
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    layers = [m for m in layers if keep and m.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
