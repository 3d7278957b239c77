"""Each grader accepts the lesson's own solution, tells wrong answers apart in words, and survives any answer."""

import math
import re
import threading

import pytest
import torch
from lessons import SOURCES, read_source

import qsal_helpers
from qsal_helpers import checks, quantize_uniform


def grid(x, gaps, low, high, rounding):
    step = (high - low) / gaps
    return low + step * rounding((x - low) / step)


def gradient(model, x, target, scores=lambda logits, target: logits.gather(1, target[:, None])):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(scores(model(x), target).sum(), x)[0]


def integrated(model, x, baseline, target, steps, start=None):
    start = baseline if start is None else start
    return sum(gradient(model, start + (k + 0.5) / steps * (x - start), target) for k in range(steps)) / steps


# grader -> (lesson, name of the student's function, wrong answers that get different messages)
GRADERS = {
    "check_number_of_levels": (
        "00_start_here",
        "number_of_levels",
        [
            lambda bits: 2 * bits,
            lambda bits: bits**2,
            lambda bits: 2**bits - 1,
            lambda bits: 10,
        ],
    ),
    "check_agreement": (
        "00_start_here",
        "agreement",
        [
            lambda a, b: (a.argmax(1) == b.argmax(1)).sum(),
            lambda a, b: (a.argmax(1) != b.argmax(1)).float().mean(),
            lambda a, b: (a.argmax(1) == b.argmax(1)).float().mean() * 100,
            lambda a, b: (a == b).float().mean(),
            lambda a, b: (a.argmax(0) == b.argmax(0)).float().mean(),
        ],
    ),
    "check_quantizer": (
        "01_quantization",
        "my_quantize",
        [
            lambda x, bits, low, high: x,
            lambda x, bits, low, high: x.clamp(low, high),
            lambda x, bits, low, high: torch.round((x - low) / (high - low) * (2**bits - 1)).clamp(0, 2**bits - 1),
            lambda x, bits, low, high: quantize_uniform(x, bits, low, high) - low,
            lambda x, bits, low, high: grid(x, 2**bits - 1, low, high, torch.round),
            lambda x, bits, low, high: grid(x.clamp(low, high), 2**bits, low, high, torch.round),
            lambda x, bits, low, high: grid(x.clamp(low, high), 2**bits - 1, low, high, torch.floor),
        ],
    ),
    "check_bits_needed": (
        "01_quantization",
        "bits_needed",
        [
            lambda decibels: decibels / 6.02,
            lambda decibels: int(decibels / 6.02),
            lambda decibels: int(decibels / 6.02) + 2,
            lambda decibels: 32,
        ],
    ),
    "check_best_clip": (
        "01_quantization",
        "best_clip",
        [
            lambda w, bits: w.abs().max(),
            lambda w, bits: -1.0,
            lambda w, bits: 0.3 * w.std(),
            lambda w, bits: 0.9 * w.abs().max(),
            lambda w, bits: min(
                (quantize_uniform(w, bits, -clip, clip) - w).square().mean().item()
                for clip in (w.abs().max() * torch.linspace(0.01, 1, 100)).tolist()
            ),
        ],
    ),
    "check_round_ste": (
        "01_quantization",
        "my_round",
        [
            lambda x: torch.round(x),
            lambda x: torch.round(x).detach(),
            lambda x: x,
            lambda x: torch.floor(x) + x - x.detach(),
            lambda x: 2 * x + (torch.round(x) - 2 * x).detach(),
        ],
    ),
    "check_pact": (
        "02_pact",
        "my_pact",
        [
            lambda x, alpha, bits: x,
            lambda x, alpha, bits: x.clamp(min=0),
            lambda x, alpha, bits: x.clamp(0, alpha),
            lambda x, alpha, bits: torch.round(x.clamp(0, alpha) * 2**bits / alpha) * alpha / 2**bits,
            lambda x, alpha, bits: torch.round(x.clamp(0, alpha) * (2**bits - 1) / alpha),
            lambda x, alpha, bits: torch.floor(x.clamp(0, alpha) * (2**bits - 1) / alpha) * alpha / (2**bits - 1),
        ],
    ),
    "check_alpha_gradient": (
        "02_pact",
        "alpha_gradient",
        [
            lambda x, alpha, grad: grad * (x >= alpha),
            lambda x, alpha, grad: (x >= alpha).sum(),
            lambda x, alpha, grad: grad[x > alpha].sum(),
            lambda x, alpha, grad: grad[x < alpha].sum(),
            lambda x, alpha, grad: grad[(x > 0) & (x < alpha)].sum(),
            lambda x, alpha, grad: grad.sum(),
            lambda x, alpha, grad: -grad[x >= alpha].sum(),
            lambda x, alpha, grad: (grad * (x >= alpha)).mean(),
        ],
    ),
    "check_steps_to_shrink": (
        "02_pact",
        "steps_to_shrink",
        [
            lambda start, end, lr, decay: math.log(start / end) / (lr * decay),
            lambda start, end, lr, decay: (start - end) / (10 * lr * decay),
            lambda start, end, lr, decay: (start - end) / (10 * lr * decay * start),
            lambda start, end, lr, decay: math.log(end / start) / (10 * lr * decay),
            lambda start, end, lr, decay: 1.0,
        ],
    ),
    "check_gradient_map": (
        "03_saliency_maps",
        "gradient_map",
        [
            lambda model, x, target: gradient(model, x, target),
            lambda model, x, target: gradient(model, x, target).sum(1),
            lambda model, x, target: gradient(model, x, target).sum(1).abs(),
            lambda model, x, target: gradient(model, x, target).abs()[:, 0],
            lambda model, x, target: gradient(model, x, target).abs().mean(1),
            lambda model, x, target: gradient(model, x, target).abs().sum(1) / len(x),
            lambda model, x, target: gradient(model, x, target, lambda z, _: z).abs().sum(1),
            lambda model, x, target: gradient(model, x, target, lambda z, _: z.amax(1)).abs().sum(1),
            lambda model, x, target: (
                gradient(model, x, target, lambda z, t: z.softmax(1).gather(1, t[:, None])).abs().sum(1)
            ),
        ],
    ),
    "check_integrated_gradients": (
        "03_saliency_maps",
        "my_integrated_gradients",
        [
            lambda model, x, baseline, target, steps: integrated(model, x, baseline, target, steps),
            lambda model, x, baseline, target, steps: x * integrated(model, x, baseline, target, steps),
            lambda model, x, baseline, target, steps: (baseline - x) * integrated(model, x, baseline, target, steps),
            lambda model, x, baseline, target, steps: (
                steps * (x - baseline) * integrated(model, x, baseline, target, steps)
            ),
            lambda model, x, baseline, target, steps: (
                (x - baseline) * integrated(model, x, baseline, target, steps)
            ).sum(1),
            lambda model, x, baseline, target, steps: (x - baseline) * gradient(model, x, target),
            lambda model, x, baseline, target, steps: x * integrated(model, x, baseline, target, steps, 0 * x),
            lambda model, x, baseline, target, steps: gradient(model, x, target),
        ],
    ),
    "check_foreground_share": (
        "03_saliency_maps",
        "foreground_share",
        [
            lambda maps, mask: (maps * mask).sum() / maps.sum(),
            lambda maps, mask: (maps * mask).sum((1, 2)),
            lambda maps, mask: (maps * ~mask).sum((1, 2)) / maps.sum((1, 2)),
            lambda maps, mask: (maps * mask).sum((1, 2)) / mask.sum((1, 2)),
            lambda maps, mask: (maps * mask).mean((1, 2)),
            lambda maps, mask: mask.float().mean((1, 2)),
        ],
    ),
}

each_grader = pytest.mark.parametrize("name", GRADERS)


def grade(name, answer, capsys):
    """Return a grader's verdict and what it printed."""
    capsys.readouterr()
    verdict = getattr(checks, name)(answer)
    return verdict, capsys.readouterr().out


def solution(lesson, function):
    """Return the function that stands in the lesson's folded solution."""
    text = "\n".join(cell.source for cell in read_source(SOURCES / f"{lesson}.py").cells)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"def {function}(" in block]
    namespace = {**vars(qsal_helpers), "torch": torch, "math": math}
    exec(code, namespace)
    return namespace[function]


def test_every_grader_is_tested_here():
    assert {name for name in vars(checks) if name.startswith("check_")} == set(GRADERS)


@each_grader
def test_the_solution_in_the_lesson_is_accepted(name, capsys):
    lesson, function, _ = GRADERS[name]
    assert grade(name, solution(lesson, function), capsys) == (True, f"{function}: correct.\n")


@each_grader
def test_wrong_answers_get_different_messages(name, capsys):
    _, function, wrong = GRADERS[name]
    outcomes = [grade(name, answer, capsys) for answer in wrong]
    assert not any(verdict for verdict, _ in outcomes)
    assert len({said for _, said in outcomes}) == len(wrong) >= 3
    assert all("not right yet" in said and "stopped with" not in said for _, said in outcomes)


@each_grader
@pytest.mark.parametrize("nothing", [None, ...])
def test_a_stub_left_alone_is_not_done_yet(name, nothing, capsys):
    verdict, said = grade(name, lambda *_: nothing, capsys)
    assert not verdict and "not done yet" in said


@each_grader
@pytest.mark.parametrize(
    "answer",
    [torch.zeros(1, 2, 3), torch.full((2, 4), math.nan), math.nan, math.inf, "two", [], object()],
    ids=["shape", "NaN tensor", "NaN", "inf", "text", "list", "object"],
)
def test_an_answer_of_the_wrong_kind_is_told_so(name, answer, capsys):
    verdict, said = grade(name, lambda *_: answer, capsys)
    assert not verdict and "not right yet" in said


@each_grader
def test_an_answer_that_raises_is_named(name, capsys):
    def answer(*_):
        raise KeyError("oops")

    verdict, said = grade(name, answer, capsys)
    assert not verdict and "KeyError" in said and "oops" in said


@each_grader
def test_an_answer_that_never_ends_is_given_up(name, capsys, monkeypatch):
    monkeypatch.setattr(checks, "TIME_LIMIT", 0.2)
    never = threading.Event()
    verdict, said = grade(name, lambda *_: never.wait(), capsys)
    never.set()
    assert not verdict and "did not finish" in said
