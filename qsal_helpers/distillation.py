"""A trained network as a teacher (Hinton, Vinyals and Dean 2015), around any other objective."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import check_model, check_number
from ._forward import at_least_float32, evaluation_mode, logits_of
from .training import Objective, cross_entropy


@dataclass(repr=False)
class Distilled:
    """The objective ``objective + weight * T^2 * KL(softmax(teacher / T) || softmax(model / T))``.

    The teacher's softened answers say more than a label: also how much a shirt looks like a coat. The factor T^2 keeps
    the size of the second term's gradients roughly the same, whatever the temperature T (section 2 of the paper).
    Neither of the two papers of the course has a teacher; this is our addition.

    A step takes two passes forward more than `objective` alone: one of the teacher, and one of the model, in training
    mode, with dropout masks of its own. So batch-norm's running statistics see each batch twice.

    Parameters
    ----------
    teacher : a trained network with the same classes. It answers in evaluation mode, its weights stay as they are, and
        it is moved to where the images are; `fit` works on a copy of it.
    objective : what else is asked for: plain training, or for instance ``SaliencyGuided()``.
    weight : of the divergence, at least 0. At 0 this is `objective`, to the bit.
    temperature : T, above 0. Our choice: 4.

    Examples
    --------
    >>> from qsal_helpers import Distilled, SaliencyGuided, build_model, quantize
    >>> teacher = build_model("lenet5")
    >>> objective = Distilled(teacher, SaliencyGuided(0.5))
    >>> loss = objective(quantize(teacher, "w2a2"), torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3]))
    >>> loss.backward()
    """

    teacher: nn.Module
    objective: Objective = cross_entropy
    weight: float = 1.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_model(self.teacher, "teacher")
        check_number(self.weight, "weight")
        check_number(self.temperature, "temperature")
        if self.temperature == 0:
            raise ValueError("temperature must be above 0; 4 is a usual choice")
        if not callable(self.objective):
            raise TypeError(f"objective must be a function of model, x and y; got {type(self.objective).__name__}")

    def __repr__(self) -> str:
        # With a digest in the teacher's place, so that `fit` resumes a training only with the same teacher.
        digest = hashlib.sha256(str(getattr(self.teacher, "precision", "fp32")).encode())
        for value in self.teacher.state_dict().values():
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:  # what a module of its own keeps by get_extra_state
                digest.update(repr(value).encode())
        teacher = f"{type(self.teacher).__name__} {digest.hexdigest()[:16]}"
        return f"Distilled({teacher}, {self.objective!r}, weight={self.weight}, temperature={self.temperature})"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss, a scalar, for images x ``(B, C, H, W)`` and labels y int64 ``(B,)``."""
        loss = self.objective(model, x, y)
        if self.weight == 0:
            return loss
        teacher = self.teacher.to(x.device)
        with torch.no_grad(), evaluation_mode(teacher):
            wanted = F.log_softmax(at_least_float32(logits_of(teacher, x)) / self.temperature, 1)
        answer = F.log_softmax(at_least_float32(logits_of(model, x)) / self.temperature, 1)
        if answer.shape != wanted.shape:
            raise ValueError(
                f"model and teacher must tell apart the same classes; they have {answer.shape[1]}, {wanted.shape[1]}"
            )
        divergence = F.kl_div(answer, wanted, reduction="batchmean", log_target=True)
        return loss + self.weight * self.temperature**2 * divergence
