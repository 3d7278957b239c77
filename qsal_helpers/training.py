"""One training loop for every model, precision and objective."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import math
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ._arguments import (
    check_choice,
    check_device,
    check_flag,
    check_model,
    check_number,
    check_path,
    check_seed,
    check_whole,
    first_line,
)
from ._forward import copied, evaluation_mode, logits_of
from ._random import random_state_kept, seeded
from .checkpoints import _structure, _write
from .data import ImageData, Split, batches
from .quantization import ALPHA_MIN, PACT

if TYPE_CHECKING:
    from .plots import Picture

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


class TrainingDiverged(RuntimeError):
    """The loss became infinite or not a number. The model holds its best epoch's weights, or those it began with."""


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of `model` on a batch: the plain objective.

    Raises
    ------
    ValueError if the model does not return logits, ``(B, classes)``.

    Examples
    --------
    >>> cross_entropy(nn.Flatten(), torch.zeros(1, 1, 2, 2), torch.tensor([3]))  # four equal logits
    tensor(1.3863)
    """
    return F.cross_entropy(logits_of(model, x, y), y)


@dataclass
class History:
    """What happened in `fit`, a value an epoch.

    Attributes
    ----------
    loss : mean training loss.
    validation_accuracy : fraction correct on the validation split, 0 to 1.
    alphas : PACT module's name -> its alpha at the end of each epoch.
    seconds : wall-clock seconds of each epoch, validation included.
    best_epoch : which epoch's weights the model now holds, counted from 1; 0 if none was finished.
    interrupted : whether an interrupt ended the training early.
    """

    loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    alphas: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.loss)

    def plot(self) -> Picture:
        """Return a figure of loss, validation accuracy and alphas over the epochs."""
        from .plots import plot_history

        return plot_history(self)

    def __str__(self) -> str:
        if not self.best_epoch:
            return "no epoch finished"
        if math.isnan(self.validation_accuracy[self.best_epoch - 1]):
            return f"loss {self.loss[-1]:.3f} (epoch {self.epochs}, no validation)"
        best = self.validation_accuracy[self.best_epoch - 1]
        return f"validation accuracy {best:.1%} (epoch {self.best_epoch} of {self.epochs})"


@dataclass(frozen=True)
class Progress:
    """What a callback of `fit` is given: where training stands. `loss` is the last batch's."""

    model: nn.Module
    objective: Objective
    step: int
    steps: int
    epoch: int
    loss: float


def fit(
    model: nn.Module,
    data: ImageData,
    objective: Objective = cross_entropy,
    epochs: int = 8,
    batch_size: int = 128,
    lr: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    callback: Callable[[Progress], None] | None = None,
    callback_every: int = 50,
    weight_decay: float = 5e-4,
    validation: float = 0.1,
    augment: bool = False,
    resume: str | os.PathLike | None = None,
    bfloat16: bool = False,
) -> History:
    """Train `model` in place with SGD (Nesterov momentum 0.9) and a cosine schedule with a short warm-up.

    A part of the training images is cut off for validation. The model ends in evaluation mode, with the weights of the
    epoch that was best there; the test images are never looked at. The learning rate ends at 0 with the last step. The
    same seed on the same machine gives the same numbers.

    Parameters
    ----------
    model : float or quantized; trained where `device` says and then put back to where it was. Its convolutions keep the
        memory format that they are trained in, channels_last. Every layer is trained, whatever mode it was in.
    objective : ``objective(model, x, y) -> loss``, with x float32 ``(B, C, H, W)`` and y int64 ``(B,)``.
        `cross_entropy`, a `SaliencyGuided`, or a function of your own. One that is built around another one holds it as
        its attribute `objective`, as `Distilled` does: so a schedule inside it is kept for `resume`, too. `fit` works
        on a copy of it, which a callback finds as ``progress.objective``.
    epochs, batch_size, lr, weight_decay : the usual. The decay applies to PACT's alphas too, as in its paper.
    seed : order of the images, validation split, dropout and random fills. Not the initial weights: set those
        with ``torch.manual_seed`` before building the model.
    device : by default a CUDA GPU if torch sees one, else the CPU.
    callback : called with a `Progress` every `callback_every` steps, and after the last one. What it draws from torch's
        random numbers does not change the training.
    validation : fraction of the training images used for choosing the epoch; 0 keeps the last epoch.
    augment : random crops, and flips where `data.mirror` allows them; see `batches`.
    resume : a file for a training that may be killed. It is written after every epoch; where it exists already,
        training goes on from the epoch it holds, to the numbers that an undisturbed run gives. It stays at the end.
        Of an objective of your own it holds the attributes that are numbers or tensors. The weights that the model
        has are not compared with those that the first training began with: the file's take their place.
    bfloat16 : whether the training passes compute convolutions and linear layers in bfloat16 (``torch.autocast``),
        which is faster for dense convolutions where the processor or GPU has instructions for it
        (``benchmarks/RESULTS.md``); depthwise ones can take longer. There the levels of quantized layers are rounded to
        bfloat16, too, and so are the logits that an objective of your own sees: write ``model(x).float()``. Parameters
        and the optimizer stay float32, and so does every evaluation, validation included.

    Returns
    -------
    `History`. An interrupt (Ctrl-C, or Kernel -> Interrupt) ends training early and returns what there is.

    Raises
    ------
    TrainingDiverged : the loss is not finite; the sentence names the layer and the epoch.
    ValueError : arguments out of range, a `resume` file of another training, or a model that returns no logits.
    FileNotFoundError : the folder of `resume` does not exist.

    Examples
    --------
    >>> from qsal_helpers import build_model, load_data
    >>> data = load_data("fashion-mnist", size=500)
    >>> history = fit(build_model("lenet5"), data, epochs=1, progress=False)
    >>> history.epochs
    1
    """
    check_model(model)
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be an ImageData, as load_data returns it; got {type(data).__name__}")
    for name, value in (("epochs", epochs), ("callback_every", callback_every)):
        check_whole(value, name)
    check_whole(batch_size, "batch_size", 2)
    check_seed(seed)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("validation", validation)):
        check_number(value, name)
    for name, value in (("progress", progress), ("augment", augment), ("bfloat16", bfloat16)):
        check_flag(value, name)
    resume = None if resume is None else check_path(resume)
    if resume is not None and resume.is_dir():
        raise ValueError(f"resume must name a file; {str(resume)!r} is a folder")
    if resume is not None and not resume.parent.is_dir():
        raise FileNotFoundError(f"the folder {str(resume.parent)!r} of the resume file does not exist; make it first")
    if not callable(objective) or isinstance(objective, type) or not (callback is None or callable(callback)):
        raise TypeError("objective and callback must be functions or objects such as SaliencyGuided(), with brackets")
    if any(isinstance(part, nn.modules.loss._Loss) or part is F.cross_entropy for part in _parts(objective)):
        raise TypeError("a loss of torch takes (logits, y): as objective write lambda model, x, y: loss(model(x), y)")
    if own := [part for part in _parts(objective) if isinstance(part, nn.Module) and any(_to_train(part))]:
        raise ValueError(
            f"the objective {type(own[0]).__name__} has parameters of its own, which fit does not train: make them "
            "part of the model, or freeze them with requires_grad_(False)"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("fit needs gradients, so it cannot be called under torch.inference_mode()")
    if lr == 0 or validation >= 1:
        raise ValueError(f"lr must be above 0, and validation below 1; got lr={lr}, validation={validation}")
    if not any(_to_train(model)):
        raise ValueError(f"{type(model).__name__} has no parameter that could be trained")
    device = check_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    train, held_out = _split(data.train, validation, seed, device)
    if len(train) < 2:
        raise ValueError(f"there are {len(train)} images left to train on; at least 2 are needed")
    home = next(model.parameters()).device
    # channels_last is what the convolution kernels of CPUs and GPUs prefer; it changes no shape.
    model.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True
    )
    # A copy, so that the caller's objective, and its schedule, stay as they are.
    objective = copied(objective)
    whole, rest = divmod(len(train), batch_size)
    steps = epochs * (whole + (rest > 1))
    made_for = []
    if resume is not None:
        layers = zlib.crc32(repr(_structure(model)).encode())
        made_for = [
            f"epochs={epochs}",
            f"{steps} steps",
            f"batch_size={batch_size}",
            f"seed={seed}",
            f"lr={float(lr)}",
            f"weight_decay={float(weight_decay)}",
            f"validation={float(validation)}",
            f"augment={augment}",
            f"bfloat16={bfloat16}",
            f"{len(data.train)} images of {data.name}",
            f"a {type(model).__name__} of {getattr(model, 'precision', 'fp32')!r}",
            f"the scheme {getattr(model, 'scheme', None)}",
            f"the objective {_description(objective)}",
            f"layers with the checksum {layers:08x}",
            f"{sum(_to_train(model))} parameters to train",
            f"images with the checksum {_checksum(data)}",
        ]
    history, best_accuracy, best_state = History(), -1.0, copy.deepcopy(model.state_dict())
    # Without its cache: older ones hand a weight cast under no_grad to a pass that needs its gradient (PyTorch's issue
    # 105211).
    no_change = contextlib.nullcontext()
    arithmetic = torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if bfloat16 else no_change
    step = 0
    bar = tqdm(total=steps, disable=not progress, leave=False, unit="batch", desc=f"epoch 1/{epochs}")
    # An interrupt inside torch's own no_grad can leave gradients switched off; this switches them back.
    with torch.enable_grad(), seeded(seed, device), bar:
        order = torch.Generator().manual_seed(seed)
        live = _Live(model, optimizer, objective, order, device, made_for)
        if resume is not None and os.path.exists(resume):
            try:
                history, best_accuracy, best_state = _restore(resume, live)
            except BaseException:
                model.load_state_dict(best_state)
                model.to(home)
                raise
            step = history.epochs * (steps // epochs)
            bar.update(step)
        try:
            if len(held_out):
                # What validation would refuse is told of now, not an epoch later.
                with torch.no_grad(), evaluation_mode(model), random_state_kept(device):
                    logits_of(model, data.normalise(held_out.images[:2]))
            for epoch in range(history.epochs + 1, epochs + 1):
                started = time.perf_counter()
                model.train()
                total, seen = torch.zeros((), device=device), 0
                for x, y in batches(train, data, batch_size, shuffle=True, generator=order, augment=augment):
                    if len(y) < 2:  # batch-norm cannot train on one image
                        continue
                    step += 1
                    for group in optimizer.param_groups:
                        group["lr"] = lr * _schedule(step, steps)
                    optimizer.zero_grad(set_to_none=True)
                    with arithmetic:
                        loss = objective(model, x, y)
                    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                        raise TypeError(
                            "objective must return one number with a gradient, such as cross_entropy's mean"
                        )
                    # On a GPU reading the loss would stall the queue, so there it is checked once an epoch.
                    if device.type == "cpu" and not math.isfinite(loss.item()):
                        _raise_diverged(model, x, epoch)
                    loss.backward()
                    if not seen and all(p.grad is None for p in model.parameters()):
                        raise ValueError(
                            "the objective's loss does not depend on the model that fit trains: let it use the model "
                            "that it is given, its first argument; what it holds itself is a copy here"
                        )
                    optimizer.step()
                    total += loss.detach() * len(y)
                    seen += len(y)
                    bar.update()
                    if callback and (step % callback_every == 0 or step == steps):
                        with random_state_kept(device):
                            callback(Progress(model, objective, step, steps, epoch, loss.item()))
                        model.train()
                mean_loss = (total / seen).item()
                # The last step of all can break the weights after the last loss was fine.
                if not math.isfinite(mean_loss) or _broken_parameters(model):
                    _raise_diverged(model, x, epoch)
                accuracy = _accuracy(model, held_out, data) if len(held_out) else math.nan
                seconds = time.perf_counter() - started
                if accuracy < 0.5 * best_accuracy:
                    warnings.warn(
                        f"validation accuracy fell from {best_accuracy:.1%} to {accuracy:.1%} in epoch {epoch}; "
                        "a lower learning rate usually helps. The best epoch's weights are kept",
                        stacklevel=2,
                    )
                accuracy_kept, state = best_accuracy, best_state
                longer = _with_epoch(history, model, mean_loss, accuracy, seconds)
                if accuracy > best_accuracy or not len(held_out):
                    longer.best_epoch, accuracy_kept, state = epoch, accuracy, copy.deepcopy(model.state_dict())
                # At one go, so that no interrupt finds the epoch in a part of them.
                history, best_accuracy, best_state = longer, accuracy_kept, state
                if resume is not None:
                    _keep(resume, live, history, {"accuracy": best_accuracy, "state": best_state})
                bar.set_description(f"epoch {min(epoch + 1, epochs)}/{epochs}")
                bar.set_postfix(loss=f"{mean_loss:.3f}", validation=f"{accuracy:.1%}")
        except KeyboardInterrupt:
            history.interrupted = True
            kept = "the best finished epoch's weights" if history.best_epoch else "the weights that it began with"
            print(f"interrupted in epoch {history.epochs + 1}; the model holds {kept}")
        finally:
            model.load_state_dict(best_state)
            model.to(home).eval()
    chance = 1 / data.num_classes
    if history.best_epoch and step >= 200 and best_accuracy < chance + min(chance / 2, 0.12):
        warnings.warn(
            f"after {step} steps the validation accuracy is {best_accuracy:.1%}, about what guessing gives: "
            "the network has learned nothing. Try a lower learning rate, or more bits",
            stacklevel=2,
        )
    return history


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageData, split: str = "test", batch_size: int = 250) -> float:
    """Return the fraction of images that `model` classifies correctly, 0 to 1.

    Parameters
    ----------
    split : "test" or "train".

    Raises
    ------
    TypeError for what is no model or no data; ValueError for another split, one without images, or a model that does
    not return logits.

    Examples
    --------
    >>> from qsal_helpers import build_model, load_data
    >>> data = load_data("mnist", size=500)
    >>> 0 <= evaluate(build_model("lenet5"), data) <= 1
    True
    """
    check_model(model)
    if not isinstance(data, ImageData):
        raise TypeError(f"data must be an ImageData, as load_data returns it; got {type(data).__name__}")
    check_choice(split, "split", ("train", "test"))
    return _accuracy(model, getattr(data, split), data, batch_size)


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split, data: ImageData, batch_size: int = 250) -> float:
    if not len(split):
        raise ValueError("there are no images to evaluate on")
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else None
    with evaluation_mode(model):
        some = batches(split, data, batch_size, device=device)
        correct = sum((logits_of(model, x, y).argmax(1) == y).sum() for x, y in some)
    return int(correct) / len(split)


def _split(split: Split, validation: float, seed: int, device: torch.device) -> tuple[Split, Split]:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    held_out = int(len(split) * validation)
    parts = split[order[held_out:]], split[order[:held_out]]
    return tuple(part.to(device) for part in parts)


@dataclass
class _Live:
    """What changes while a training goes on, besides its history."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    order: torch.Generator
    device: torch.device
    made_for: list[str]


def _description(objective: Objective) -> str:
    """Return what tells an objective from others, the same in every process, so without addresses in memory.

    Of functions the name is known; of other objects, and of those that a method belongs to, also their attributes that
    are numbers or texts.
    """
    if dataclasses.is_dataclass(objective) or isinstance(objective, functools.partial):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(objective))
    name = getattr(objective, "__qualname__", type(objective).__qualname__)
    attributes = getattr(getattr(objective, "__self__", objective), "__dict__", {})
    known = [f"{key}={value!r}" for key, value in attributes.items() if type(value) in (int, float, bool, str)]
    return f"{name}({', '.join(known)})" if known else name


def _to_train(module: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in module.parameters()]


def _parts(objective: Any) -> list[Any]:
    """Return an objective and those that it is built around, which it holds as `objective`, the outermost first."""
    parts = []
    while objective is not None:
        parts.append(objective)
        objective = getattr(objective, "objective", None)
    return [part for part in parts if hasattr(part, "__dict__")]


def _keep(path: Path, live: _Live, history: History, best: dict[str, Any]) -> None:
    """Write all that the next epoch depends on, so that a kill at any moment leaves the old file or the new one."""
    parts = _parts(live.objective)
    kept = {
        "made_for": live.made_for,
        "model": live.model.state_dict(),
        "optimizer": live.optimizer.state_dict(),
        # Such as the calls of a schedule.
        "objective": [{k: v for k, v in vars(part).items() if type(v) in (int, float, Tensor)} for part in parts],
        "order": live.order.get_state(),
        "random": torch.get_rng_state(),
        "random_gpu": torch.cuda.get_rng_state(live.device) if live.device.type == "cuda" else None,
        "history": dataclasses.asdict(history),
        "best": best,
    }
    content = io.BytesIO()
    torch.save(kept, content)
    _write(path, content.getvalue())


def _restore(path: Path, live: _Live) -> tuple[History, float, dict[str, Any]]:
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        found, wanted = kept.get("made_for", ["a training that it does not describe"]), live.made_for
        if found != wanted:
            theirs, ours = (
                ", ".join(part for part in these if part not in those)
                for these, those in ((found, wanted), (wanted, found))
            )
            raise ValueError(f"it was made for {theirs}, this training has {ours}")
        live.model.load_state_dict(kept["model"])
        live.optimizer.load_state_dict(kept["optimizer"])
        for part, values in zip(_parts(live.objective), kept["objective"], strict=True):
            vars(part).update(values)
        live.order.set_state(kept["order"])
        torch.set_rng_state(kept["random"])
        if live.device.type == "cuda":
            torch.cuda.set_rng_state(kept["random_gpu"], live.device)
        best = {name: value.to(live.device) for name, value in kept["best"]["state"].items()}
        return History(**kept["history"]), kept["best"]["accuracy"], best
    except Exception as error:  # a damaged file can fail in any of these lines, each in its own way
        raise ValueError(f"{path} cannot be resumed from: {first_line(error)}; delete it to start anew") from error


def _checksum(data: ImageData) -> str:
    checksum = zlib.crc32(repr((data.mean, data.std, data.mirror)).encode())
    for part in (data.train.images, data.train.labels):
        checksum = zlib.crc32(part.cpu().contiguous().numpy(), checksum)
    return f"{checksum:08x}"


def _schedule(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _with_epoch(history: History, model: nn.Module, loss: float, accuracy: float, seconds: float) -> History:
    """Return a history that is longer by one epoch; the one given stays as it is."""
    alphas = dict(history.alphas)
    for name, module in model.named_modules():
        if isinstance(module, PACT):
            # The optimizer's last step may have gone below; PACT itself mends that only when it is next used.
            module.alpha.data.clamp_(min=ALPHA_MIN)
            alphas[name] = [*alphas.get(name, []), module.alpha.item()]
    added = {"loss": loss, "validation_accuracy": accuracy, "seconds": seconds}
    longer = {name: [*getattr(history, name), value] for name, value in added.items()}
    return dataclasses.replace(history, alphas=alphas, **longer)


def _broken_parameters(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]


def _raise_diverged(model: nn.Module, x: Tensor, epoch: int) -> None:
    layers = [name.rpartition(".")[0] or name for name in _broken_parameters(model)] or _infinite_outputs(model, x)
    where = f", first seen in layer {layers[0]!r}" if layers else ", though every layer's output is finite"
    raise TrainingDiverged(
        f"the loss became infinite or not a number in epoch {epoch}{where}; "
        "the model holds the weights of its best epoch, or those it began with. Try a lower learning rate"
    )


@torch.no_grad()
def _infinite_outputs(model: nn.Module, x: Tensor) -> list[str]:
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not bool(output.isfinite().all()):
            found.append(name)

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if not list(module.children()):
                hooks.enter_context(module.register_forward_hook(functools.partial(look, name)))
        model(x)
    return found
