"""Each grader accepts the lesson's own solution, tells wrong answers apart in words, and survives any answer."""

import math
import re
import threading

import IPython.display
import numpy as np
import pytest
import torch
from lessons import SOURCES, read_source
from shared import solutions

import qsal_helpers
from qsal_helpers import SaliencyGuided, checks, fit, quantize, quantize_uniform


def grid(x, gaps, low, high, rounding):
    step = (high - low) / gaps
    return low + step * rounding((x - low) / step)


def gradient(model, x, target, scores=lambda logits, target: logits.gather(1, target[:, None])):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(scores(model(x), target).sum(), x)[0]


def integrated(model, x, baseline, target, steps, start=None):
    start = baseline if start is None else start
    return sum(gradient(model, start + (k + 0.5) / steps * (x - start), target) for k in range(steps)) / steps


def hide(x, score, k, value):
    order = score.flatten(1).argsort(1)
    hidden = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :k], True)
    return torch.where(hidden.view(len(x), 1, *x.shape[2:]), value, x)


def kl(logits, masked_logits):
    log_p, log_q = logits.log_softmax(1), masked_logits.log_softmax(1)
    return log_p.exp() * (log_p - log_q)


def guided(
    model, x, y, ratio, weight, rank_by="magnitude", fill="mean", swapped=False, cut=False, held="", backward=False
):
    x = x.clone().requires_grad_()
    logits = model(x)
    loss = torch.nn.functional.cross_entropy(logits, y)
    if backward:
        loss.backward(retain_graph=True)
        gradient = x.grad
    else:
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    masked = model(qsal_helpers.mask_least_salient(x.detach(), gradient, ratio, rank_by, fill=fill))
    whole = logits.detach() if held == "whole" else logits
    masked = masked.detach() if held == "masked" else masked
    term = (kl(masked, whole) if swapped else kl(whole, masked)).sum(1).mean()
    return loss + weight * (term.detach() if cut else term)


def fit_guided(model, data, ratio, epochs, seed):
    fit(model, data, SaliencyGuided(ratio), epochs=epochs, seed=seed, progress=False)
    return model


def fit_by_position(model, data, precision, ratio, epochs, seed):
    small = quantize(model, precision)
    fit(small, data, SaliencyGuided(ratio), epochs, seed, progress=False)
    return small


def room_for(kind, chance):
    return chance if kind == "deletion" else 1 - chance


def gain_over(kind, area, chance):
    return chance - area if kind == "deletion" else area - chance


def beaten(scores):
    return ((scores[:, None] >= scores[None]).all(-1) & (scores[:, None] > scores[None]).any(-1)).any(0)


def gain_of(bn, power=0.5, eps=None):
    return bn.weight / (bn.running_var + (bn.eps if eps is None else eps)) ** power


def folded(weight, bn):
    return weight * gain_of(bn).view(-1, 1, 1, 1)


def bytes_of(fields, shifts):
    return (fields.view(-1, 4).int() << torch.tensor(shifts)).sum(1).to(torch.uint8)


# grader -> (lesson, name of the student's function, wrong answers that get different messages)
GRADERS = {
    "check_number_of_levels": (
        "00_start_here",
        "number_of_levels",
        [
            lambda bits: 2 * bits,
            lambda bits: bits**2,
            lambda bits: 2**bits - 1,
            lambda bits: 12,
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
            lambda x, bits, low, high: (
                quantize_uniform(x, bits, low, high)
                if low == 0
                else grid(x.clamp(low, high) + low, 2**bits - 1, low, high, torch.round) - low
            ),
            lambda x, bits, low, high: grid(x.clamp(low, high), 2**bits - 1, low, high, torch.floor),
        ],
    ),
    "check_bits_needed": (
        "01_quantization",
        "bits_needed",
        [
            lambda decibels: decibels / 6.02,
            lambda decibels: int(decibels / 6.02),
            lambda decibels: math.ceil(decibels / 6.02),
            lambda decibels: max(2, math.ceil(decibels / 6.02)),
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
            lambda w, bits: w.std() * (0.5 + 0.5 * bits),
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
            lambda start, end, lr, decay: math.log10(start / end) / (10 * lr * decay),
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
            lambda model, x, baseline, target, steps: (x - baseline) * integrated(model, x, baseline, target, 200),
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
            lambda model, x, baseline, target, steps: (
                (x - baseline) * integrated(model, x - baseline, 0 * baseline, target, steps)
            ),
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
    "check_hide_pixels": (
        "04_saliency_guided_training",
        "hide_pixels",
        [
            lambda x, gradient, k, value: x,
            lambda x, gradient, k, value: hide(x, gradient, k, value),
            lambda x, gradient, k, value: hide(x, -gradient.abs(), k, value),
            lambda x, gradient, k, value: hide(x, gradient.abs(), 20 - k, value),
            lambda x, gradient, k, value: hide(x, gradient.abs(), k - 1, value),
            lambda x, gradient, k, value: hide(x, gradient.abs(), k + 1, value),
            lambda x, gradient, k, value: torch.cat([hide(x, gradient.abs(), k, value)[:, :1], x[:, 1:]], 1),
            lambda x, gradient, k, value: hide(x, gradient.abs(), k, 0.0),
            lambda x, gradient, k, value: hide(x, gradient.abs(), k, 7.0),
            lambda x, gradient, k, value: x.copy_(hide(x, gradient.abs(), k, value)),
        ],
    ),
    "check_divergence": (
        "04_saliency_guided_training",
        "divergence",
        [
            lambda a, b: kl(b, a).sum(1).mean(),
            lambda a, b: kl(a, b).sum(),
            lambda a, b: kl(a, b).mean(),
            lambda a, b: kl(a, b).sum(1),
            lambda a, b: kl(a.T, b.T).T.sum(1).mean(),
            lambda a, b: (a.log_softmax(1) * (a.log_softmax(1) - b.log_softmax(1))).sum(1).mean(),
            lambda a, b: (a.softmax(1) * (a.log_softmax(1) - b.softmax(1))).sum(1).mean(),
            lambda a, b: -(a.softmax(1) * b.log_softmax(1)).sum(1).mean(),
            lambda a, b: (a.softmax(1) * (a.softmax(1).log() - b.softmax(1).log())).sum(1).mean(),
        ],
    ),
    "check_guided_loss": (
        "04_saliency_guided_training",
        "guided_loss",
        [
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, 0.0),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, 1.0),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, -weight),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight, rank_by="signed"),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight, swapped=True),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight).item(),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight, cut=True),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight, held="masked"),
            lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight, backward=True),
        ],
    ),
    "check_plain_steps": (
        "04_saliency_guided_training",
        "plain_steps",
        [
            lambda forward, to_input, full: forward + to_input + 2 * full,
            lambda forward, to_input, full: (forward + to_input + full) / 2,
            lambda forward, to_input, full: (forward + 2 * to_input + 2 * full) / 3,
            lambda forward, to_input, full: (forward + 2 * full) / 3,
        ],
    ),
    "check_combined": (
        "05_combined_method",
        "combined",
        [
            lambda model, data, precision, ratio, epochs, seed: fit_guided(model, data, ratio, epochs, seed),
            lambda model, data, precision, ratio, epochs, seed: quantize(model, precision),
            lambda model, data, precision, ratio, epochs, seed: fit_guided(
                quantize(model, "w4a4"), data, ratio, epochs, seed
            ),
            lambda model, data, precision, ratio, epochs, seed: fit_guided(
                quantize(model, precision), data, 0.5, epochs, seed
            ),
            lambda model, data, precision, ratio, epochs, seed: fit_guided(
                quantize(model, precision), data, 0, epochs, seed
            ),
            lambda model, data, precision, ratio, epochs, seed: fit_guided(
                quantize(model, precision), data, ratio, 8, seed
            ),
            lambda model, data, precision, ratio, epochs, seed: fit_guided(
                quantize(model, precision), data, ratio, epochs, 0
            ),
            lambda model, data, precision, ratio, epochs, seed: quantize(
                fit_guided(model, data, ratio, epochs, seed), precision
            ),
            lambda model, data, precision, ratio, epochs, seed: fit(
                quantize(model, precision), data, SaliencyGuided(ratio), epochs=epochs, seed=seed, progress=False
            ),
        ],
    ),
    "check_pareto_front": (
        "05_combined_method",
        "my_pareto_front",
        [
            lambda scores: beaten(scores),
            lambda scores: (scores == scores.amax(0)).any(1),
            lambda scores: ~(scores[:, None] >= scores[None]).all(-1).any(0),
            lambda scores: torch.ones(len(scores), dtype=torch.bool),
            lambda scores: ~(scores[:, None] > scores[None]).all(-1).any(0),
            lambda scores: (~beaten(scores)).float(),
            lambda scores: ~beaten(scores[:, :2]),
        ],
    ),
    "check_half_width": (
        "06_trade_off",
        "half_width",
        [
            lambda values, t: t * values.std() / len(values),
            lambda values, t: t * values.std(),
            lambda values, t: values.std() / len(values) ** 0.5,
            lambda values, t: 2 * t * values.std() / len(values) ** 0.5,
            lambda values, t: t * values.std(correction=0) / len(values) ** 0.5,
            lambda values, t: values.mean(),
        ],
    ),
    "check_paired_t": (
        "06_trade_off",
        "paired_t",
        [
            lambda a, b: (a.mean() - b.mean()) / ((a.var() + b.var()) / len(a)).sqrt(),
            lambda a, b: (b - a).mean() / ((a - b).std() / len(a) ** 0.5),
            lambda a, b: (a - b).mean() / (a - b).std(),
            lambda a, b: (a - b).mean(),
            lambda a, b: (a - b).mean() / ((a - b).std(correction=0) / len(a) ** 0.5),
            lambda a, b: (a + b).mean(),
        ],
    ),
    "check_holm": (
        "06_trade_off",
        "my_holm",
        [
            lambda p: (p * len(p)).clamp(max=1),
            lambda p: p,
            lambda p: (p.sort().values * torch.arange(len(p), 0, -1)).cummax(0).values[p.argsort().argsort()],
            lambda p: (p * (len(p) - p.argsort().argsort())).clamp(max=1),
            lambda p: (p.sort().values * torch.arange(len(p), 0, -1)).cummax(0).values.clamp(max=1),
            lambda p: 1 - p,
        ],
    ),
    "check_accumulator_bits": (
        "07_deployment",
        "accumulator_bits",
        [
            lambda weight, top, terms: weight * top * terms,
            lambda weight, top, terms: math.log2(weight * top * terms) + 1,
            lambda weight, top, terms: (weight * top).bit_length() + 1,
            lambda weight, top, terms: weight.bit_length() + top.bit_length(),
            lambda weight, top, terms: (weight * top * terms).bit_length(),
            lambda weight, top, terms: math.ceil(math.log2(weight * top * terms)) + 1,
            lambda weight, top, terms: 8,
            lambda weight, top, terms: 32,
        ],
    ),
    "check_fold_batch_norm": (
        "07_deployment",
        "fold_batch_norm",
        [
            lambda weight, bias, bn: weight,
            lambda weight, bias, bn: (weight, bias),
            lambda weight, bias, bn: (weight * gain_of(bn, power=1).view(-1, 1, 1, 1), bias),
            lambda weight, bias, bn: (weight * gain_of(bn, power=-0.5).view(-1, 1, 1, 1), bias),
            lambda weight, bias, bn: (weight * (gain_of(bn) / bn.weight).view(-1, 1, 1, 1), bias),
            lambda weight, bias, bn: (weight * gain_of(bn, eps=0).view(-1, 1, 1, 1), bias),
            lambda weight, bias, bn: (weight * gain_of(bn).view(1, -1, 1, 1), bias),
            lambda weight, bias, bn: (folded(weight, bn), bias),
            lambda weight, bias, bn: (folded(weight, bn), gain_of(bn) * (bias - bn.running_mean)),
            lambda weight, bias, bn: (folded(weight, bn), gain_of(bn) * bias + bn.bias),
            lambda weight, bias, bn: (folded(weight, bn), bn.bias - gain_of(bn) * bn.running_mean),
            lambda weight, bias, bn: (folded(weight, bn), bias - gain_of(bn) * bn.running_mean + bn.bias),
            lambda weight, bias, bn: (folded(weight, bn), gain_of(bn) * bias - bn.running_mean + bn.bias),
            lambda weight, bias, bn: (folded(weight, bn), gain_of(bn) * (bias + bn.running_mean) + bn.bias),
            lambda weight, bias, bn: (folded(weight, bn), torch.zeros(5)),
        ],
    ),
    "check_pack_four": (
        "07_deployment",
        "pack_four",
        [
            lambda codes: codes,
            lambda codes: bytes_of(codes & 3, [6, 4, 2, 0]),
            lambda codes: bytes_of(codes, [0, 2, 4, 6]),
            lambda codes: bytes_of(codes + 2, [0, 2, 4, 6]),
            lambda codes: bytes_of(codes & 3, [0, 1, 2, 3]),
            lambda codes: bytes_of(codes.abs(), [0, 2, 4, 6]),
            lambda codes: bytes_of(codes & 3, [0, 2, 4, 6]).float(),
            lambda codes: bytes_of(codes & 3, [0, 2, 4, 6]).int(),
            lambda codes: bytes_of(codes & 3, [0, 2, 4, 6]).to(torch.int8),
            lambda codes: bytes_of((codes & 3).view(4, -1).T.reshape(-1), [0, 2, 4, 6]),
            lambda codes: (codes[::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6).to(torch.uint8),
            lambda codes: bytes_of(codes & 1, [0, 2, 4, 6]),
        ],
    ),
    "check_of_the_room": (
        "08_how_far",
        "of_the_room",
        [
            lambda kind, area, chance: gain_over(kind, area, chance),
            lambda kind, area, chance: -gain_over(kind, area, chance) / room_for(kind, chance),
            lambda kind, area, chance: gain_over(kind, area, chance) / (1 - room_for(kind, chance)),
            lambda kind, area, chance: gain_over(kind, area, chance) / chance,
            lambda kind, area, chance: gain_over(kind, area, chance) / area,
            lambda kind, area, chance: (area - chance) / (1 - chance),
            lambda kind, area, chance: abs(gain_over(kind, area, chance)) / room_for(kind, chance),
            lambda kind, area, chance: 0.5,
        ],
    ),
    "check_pseudo_values": (
        "08_how_far",
        "my_pseudo_values",
        [
            lambda whole, without: len(without) * without - (len(without) - 1) * whole,
            lambda whole, without: len(without) * (whole - without),
            lambda whole, without: len(without) * whole - without,
            lambda whole, without: whole - without,
            lambda whole, without: (len(without) - 1) * without - len(without) * whole,
            lambda whole, without: (len(without) - 1) * whole - (len(without) - 2) * without,
            lambda whole, without: without,
            lambda whole, without: without + 1,
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
    namespace = {**vars(qsal_helpers), "torch": torch, "math": math}
    exec(solutions(read_source(SOURCES / f"{lesson}.py"))[function], namespace)
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
    before = len(checks.OUTCOMES)
    outcomes = [grade(name, answer, capsys) for answer in wrong]
    assert not any(verdict for verdict, _ in outcomes)
    assert len({outcome.message for outcome in checks.OUTCOMES[before:]}) == len(wrong) >= 3
    assert all("not right yet" in said and "stopped with" not in said for _, said in outcomes)


@each_grader
def test_every_wrong_answer_gets_a_hint_and_what_is_wrong_is_shown(name, capsys):
    _, function, wrong = GRADERS[name]
    said = [grade(name, answer, capsys)[1] for answer in wrong]
    assert all(re.search(r"\nHint: \w.{10,}", text) for text in said)
    # A trained network has nothing to show that fits into a few lines.
    assert name == "check_combined" or any(re.search(r"^    .*\d", text, re.MULTILINE) for text in said)


FAR_OFF = {
    "check_quantizer": lambda x, bits, low, high: torch.where(x > 1, math.inf, x),
    "check_pact": lambda x, alpha, bits: torch.where(x > 1, 1e38, x),
    "check_best_clip": lambda w, bits: 1e30,
}


@pytest.mark.parametrize("name", FAR_OFF)
def test_in_a_notebook_a_wrong_curve_is_drawn_beside_the_right_one_however_far_off(name, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda picture: drawn.append(picture.to_png()))
    verdict, _ = grade(name, FAR_OFF[name], capsys)
    assert not verdict and [png[1:4] for png in drawn] == [b"PNG"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "check_quantizer",
            lambda x, bits, low, high: (
                torch.round((x.clamp(low, high) - low) * (2**bits - 1) / (high - low)) * (high - low) / (2**bits - 1)
                + low
            ),
        ),
        (
            "check_pact",
            lambda x, alpha, bits: (
                torch.round((x.abs() - (x - alpha).abs() + alpha) / 2 * (2**bits - 1) / alpha) * alpha / (2**bits - 1)
            ),
        ),
        ("check_guided_loss", lambda *given: guided(*given, held="whole")),
        ("check_plain_steps", lambda forward, to_input, full: round((forward + to_input + 2 * full) / 3, 2)),
    ],
    ids=["quantizer", "PACT", "guided loss", "plain steps"],
)
def test_the_formula_of_the_lesson_is_accepted_however_it_is_written(name, answer, capsys):
    assert grade(name, answer, capsys)[0]


SLIPS = {
    "one case only": ("check_agreement", lambda a, b: 0.6, "use the tensors that it is given"),
    "one level too many": ("check_number_of_levels", lambda bits: 2**bits + 1, "Count by hand"),
    "the smallest output": (
        "check_agreement",
        lambda a, b: (a.argmin(1) == b.argmin(1)).float().mean(),
        "places of the smallest",
    ),
    "2^bits levels": ("check_number_of_levels", lambda bits: 2 ^ bits, r"write \*\*"),
    "low not added": (
        "check_quantizer",
        lambda x, bits, low, high: grid(x.clamp(low, high), 2**bits - 1, low, high, torch.round) - low,
        "off by low",
    ),
    "bits - 1 gaps": (
        "check_quantizer",
        lambda x, bits, low, high: grid(x.clamp(low, high), bits - 1, low, high, torch.round),
        "only 2 levels; 2 bits name 4",
    ),
    "bits rounded down": (
        "check_bits_needed",
        lambda decibels: int(math.log2(10 ** (decibels / 20) + 1)),
        "round up, not to the nearest",
    ),
    "6.02 dB a bit": ("check_bits_needed", lambda decibels: math.ceil(decibels / 6.02), "too good for few bits"),
    "a quotient without its fraction": (
        "check_quantizer",
        lambda x, bits, low, high: (
            low + (high - low) / (2**bits - 1) * ((x.clamp(low, high) - low) // ((high - low) / (2**bits - 1)))
        ),
        "take the nearest level",
    ),
    "2^bits without brackets": (
        "check_quantizer",
        lambda x, bits, low, high: grid(x.clamp(low, high), 2 ^ bits - 1, low, high, torch.round),
        r"2\^bits is something else",
    ),
    "low subtracted twice": (
        "check_quantizer",
        lambda x, bits, low, high: grid(x.clamp(low, high), 2**bits - 1, low, high, torch.round) - 2 * low,
        "subtracted at the end, too",
    ),
    "x itself rounded": ("check_round_ste", lambda x: (setattr(x, "data", x.data.round()), x)[1], "changes `x` itself"),
    "a new start": ("check_round_ste", lambda x: x.detach().round().requires_grad_(), "cut off from x"),
    "up to alpha": ("check_alpha_gradient", lambda x, alpha, grad: grad[x <= alpha].sum(), "from alpha on"),
    "autograd's half at a tie": (
        "check_alpha_gradient",
        lambda x, alpha, grad: grad[x > alpha].sum() + grad[x == alpha].sum() / 2,
        "counts half",
    ),
    "brackets around the divisor": (
        "check_steps_to_shrink",
        lambda start, end, lr, decay: math.log(start / end) / 10 * lr * decay,
        "in brackets",
    ),
    "the cross-entropy's gradient": (
        "check_gradient_map",
        lambda model, x, target: (
            gradient(model, x, target, lambda z, t: torch.nn.functional.cross_entropy(z, t)).abs().sum(1)
        ),
        "mean cross-entropy",
    ),
    "the largest channel": (
        "check_gradient_map",
        lambda model, x, target: gradient(model, x, target).abs().amax(1),
        "largest of the channels",
    ),
    "one point more than steps": (
        "check_integrated_gradients",
        lambda model, x, baseline, target, steps: (
            (x - baseline)
            * sum(gradient(model, baseline + k / steps * (x - baseline), target) for k in range(steps + 1))
            / steps
        ),
        "count 5 times, not 4",
    ),
    "a way along x": (
        "check_integrated_gradients",
        lambda model, x, baseline, target, steps: (
            (x - baseline) * integrated(model, baseline + x, baseline, target, steps)
        ),
        "goes along x",
    ),
    "return in the loop": (
        "check_integrated_gradients",
        lambda model, x, baseline, target, steps: (x - baseline) * gradient(model, baseline + 0 * x, target) / steps,
        "inside the loop",
    ),
    "the sum of all maps": (
        "check_foreground_share",
        lambda maps, mask: (maps * mask).sum((1, 2)) / maps.sum(),
        "all maps together",
    ),
    "four images": ("check_divergence", lambda a, b: kl(a, b).sum() / 4, "use the tensors that it is given"),
    "places taken for ranks": (
        "check_hide_pixels",
        lambda x, gradient, k, value: torch.where(
            (gradient.abs().flatten(1).argsort(1) < k).view(len(x), 1, *x.shape[2:]), value, x
        ),
        "places, not ranks",
    ),
    "the gradient changed": (
        "check_hide_pixels",
        lambda x, gradient, k, value: hide(x, gradient.abs_(), k, value),
        "changes `gradient` itself",
    ),
    "the weight on the wrong term": (
        "check_guided_loss",
        lambda model, x, y, ratio, weight: weight * guided(model, x, y, ratio, 1 / weight),
        "not to the cross-entropy",
    ),
    "a rounded price": (
        "check_plain_steps",
        lambda forward, to_input, full: round((forward + to_input + 2 * full) / 3),
        "leave the fraction",
    ),
    "rows that beat nobody": (
        "check_pareto_front",
        lambda scores: ~((scores[:, None] >= scores[None]).all(-1) & (scores[:, None] > scores[None]).any(-1)).any(1),
        "beat no other",
    ),
    "only earlier rows compared": (
        "check_pareto_front",
        lambda scores: torch.stack([~beaten(scores[: i + 1])[i] for i in range(len(scores))]),
        "Row 0 should go",
    ),
    "n - 1 under the root": (
        "check_half_width",
        lambda values, t: t * values.std() / (len(values) - 1) ** 0.5,
        "not n - 1",
    ),
    "a t without its sign": (
        "check_paired_t",
        lambda a, b: ((a - b).mean() / ((a - b).std() / len(a) ** 0.5)).abs(),
        "sign is lost",
    ),
    "a t without brackets": ("check_paired_t", lambda a, b: (a - b).mean() / (a - b).std() / len(a) ** 0.5, "brackets"),
    "put back the wrong way": (
        "check_holm",
        lambda p: (p.sort().values * torch.arange(len(p), 0, -1)).cummax(0).values.clamp(max=1)[p.argsort()],
        "wrong way",
    ),
    "eps behind the root": (
        "check_fold_batch_norm",
        lambda weight, bias, bn: (weight * (bn.weight / (bn.running_var.sqrt() + bn.eps)).view(-1, 1, 1, 1), bias),
        "behind the root",
    ),
    "the batch-norm changed": (
        "check_fold_batch_norm",
        lambda weight, bias, bn: (folded(weight, bn), bn.running_var.add_(1)),
        "changes `bn` itself",
    ),
    "<< before &": (
        "check_pack_four",
        lambda codes: (
            codes[::4] & 3 | codes[1::4] & 3 << 2 | codes[2::4].int() & 3 << 4 | codes[3::4].int() & 3 << 6
        ).to(torch.uint8),
        "before you shift",
    ),
    "neither ratio nor epochs": (
        "check_combined",
        lambda model, data, precision, ratio, epochs, seed: fit_guided(quantize(model, precision), data, 0.5, 8, seed),
        "neither mask_ratio nor epochs",
    ),
    "fit without keywords": (
        "check_combined",
        lambda model, data, precision, ratio, epochs, seed: fit_guided(quantize(model, precision), data, ratio, 8, 0),
        "neither epochs nor seed",
    ),
    "seed in the place of batch_size": (
        "check_combined",
        fit_by_position,
        "seed arrived as fit's batch_size",
    ),
    "the fraction dropped": (
        "check_plain_steps",
        lambda forward, to_input, full: (forward + to_input + 2 * full) // 3,
        "drops the fraction",
    ),
    "rows of an image sorted apart": (
        "check_hide_pixels",
        lambda x, gradient, k, value: torch.where(
            torch.zeros_like(gradient, dtype=torch.bool).scatter(1, gradient.abs().argsort(1)[:, :k], True)[:, None],
            value,
            x,
        ),
        "one row of each image",
    ),
    "magnitudes added up": (
        "check_integrated_gradients",
        lambda model, x, baseline, target, steps: (
            (x - baseline)
            * sum(gradient(model, baseline + (i + 0.5) / steps * (x - baseline), target).abs() for i in range(steps))
            / steps
        ),
        "keep their signs",
    ),
    "the fill left at its default": (
        "check_guided_loss",
        lambda model, x, y, ratio, weight: guided(model, x, y, ratio, weight, fill="uniform"),
        "differs from call to call",
    ),
    "larger anywhere": (
        "check_pareto_front",
        lambda scores: ~(scores[:, None] > scores[None]).any(-1).any(0),
        "at least as good everywhere",
    ),
    "larger everywhere": (
        "check_pareto_front",
        lambda scores: ~(scores[:, None] > scores[None]).all(-1).any(0),
        "Better in one column and equal in others",
    ),
    "gain without a view": (
        "check_fold_batch_norm",
        lambda weight, bias, bn: (weight * bn.weight, bias),
        r"view\(-1, 1, 1, 1\)",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_likely_slip_is_called_by_its_name(slip, capsys):
    name, answer, words = SLIPS[slip]
    verdict, said = grade(name, answer, capsys)
    assert not verdict and re.search(words, " ".join(said.split()), re.IGNORECASE)


def test_pact_without_its_clip_is_not_mistaken_for_the_number_of_the_level(capsys):
    answer = lambda x, alpha, bits: torch.round(x.clamp(min=0) * (2**bits - 1) / alpha) * alpha / (2**bits - 1)
    verdict, said = grade("check_pact", answer, capsys)
    assert not verdict and "clip at alpha" in said


def test_two_matrices_stand_beside_each_other_at_the_place_that_is_furthest_off():
    wanted = torch.zeros(2, 3, 2, 2)
    answer = wanted.clone()
    answer[1, 2, 0, 1] = 7
    shown = [line.split() for line in checks.beside(answer, wanted).splitlines()]
    assert shown[0] == ["at", "[1,", "2]:"]
    assert shown[2:] == [["0", "7", "|", "0", "0"], ["0", "0", "|", "0", "0"]]


def test_the_rows_of_a_table_of_wrong_answers_stay_whole_where_a_grader_prints_them(capsys):
    wide = -1.234e-5 * torch.arange(1.0, 65).view(8, 8)
    shown = checks.beside(wide, 2 * wide)

    def test():
        with checks._showing(shown):
            raise checks._Wrong("It is too small.")

    checks.grade("size", lambda: 0, test, "double it")
    assert shown in capsys.readouterr().out


@each_grader
@pytest.mark.parametrize("stub", [lambda *_: None, lambda *_: ...], ids=["empty", "dots"])
def test_a_stub_left_alone_is_not_done_yet(name, stub, capsys):
    verdict, said = grade(name, stub, capsys)
    assert not verdict and "not done yet" in said


@each_grader
def test_a_forgotten_return_is_called_by_its_name(name, capsys):
    lesson, function, _ = GRADERS[name]
    right = solution(lesson, function)

    def answer(*arguments):
        right(*arguments)

    verdict, said = grade(name, answer, capsys)
    assert not verdict and "does its last line begin with return?" in " ".join(said.split())


@each_grader
@pytest.mark.parametrize(
    "answer",
    [torch.zeros(1, 2, 3), torch.full((2, 4), math.nan), math.nan, math.inf, "two", [], object()],
    ids=["shape", "NaN tensor", "NaN", "inf", "text", "list", "object"],
)
def test_an_answer_of_the_wrong_kind_is_told_so(name, answer, capsys):
    verdict, said = grade(name, lambda *_: answer, capsys)
    assert not verdict and "not right yet" in said


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.float64, np.array, torch.tensor])
def test_a_number_is_right_whichever_library_it_comes_from(kind, capsys):
    assert checks.check_number_of_levels(lambda bits: kind(2**bits))
    assert "correct" in capsys.readouterr().out


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


def test_a_loop_that_was_given_up_is_ended(capsys, monkeypatch):
    monkeypatch.setattr(checks, "TIME_LIMIT", 0.5)

    def endless(bits):
        while True:
            pass

    assert not grade("check_number_of_levels", endless, capsys)[0]
    assert not checks.still_running()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_clock_counts_the_same_however_many_threads_torch_has(threads, capsys, monkeypatch):
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert grade("check_number_of_levels", lambda bits: seen.append(torch.get_num_threads()) or 2**bits, capsys)[0]
        assert set(seen) == {1} and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@each_grader
def test_a_right_answer_in_float64_is_right(name, capsys):
    lesson, function, _ = GRADERS[name]
    right = solution(lesson, function)

    def wider(*arguments):
        answer = right(*arguments)
        return answer.double() if isinstance(answer, torch.Tensor) and answer.is_floating_point() else answer

    assert grade(name, wider, capsys) == (True, f"{function}: correct.\n")


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("check_quantizer", lambda x, bits, low, high: torch.round(x).int(), "subtract low"),
        ("check_round_ste", lambda x: x.round().int(), "cut off from x"),
    ],
)
def test_whole_numbers_of_an_int_type_are_told_what_is_wrong_with_them(name, answer, words, capsys):
    verdict, said = grade(name, answer, capsys)
    assert not verdict and words in said and "stopped with" not in said


def test_an_error_in_a_students_function_names_its_line(capsys):
    def my_pact(x, alpha, bits):
        low = x.clamp(0, alpha)
        return low / bits.steps

    assert not checks.check_pact(my_pact)
    assert "stopped in `return low / bits.steps`: AttributeError" in capsys.readouterr().out
