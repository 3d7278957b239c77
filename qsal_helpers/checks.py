"""Graders for the exercises: each says in words what is wrong, and shows it as a small table or picture.

A check never raises, whatever the student's function does: it returns True when the exercise is solved and False
otherwise, and prints one paragraph. A stub that was left alone is "not done yet".

``python -m qsal_helpers.checks notebook.ipynb`` grades a whole notebook; see `qsal_helpers.grading`.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dis
import functools
import math
import reprlib
import sys
import textwrap
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ._random import seeded
from .data import ImageData, Split
from .evidence import holm, pseudo_values
from .guided import SaliencyGuided, mask_least_salient
from .models import build_model
from .quantization import quantize, quantize_uniform
from .training import fit

if TYPE_CHECKING:
    from .plots import Picture

TIME_LIMIT = 10.0  # seconds of computing, or three times as many by the clock: a busy machine needs them
THREAD = "exercise"  # the name of the threads that run students' functions


class Outcome(NamedTuple):
    """What became of one exercise: `state` is "done", "not yet", "wrong" or "error"."""

    exercise: str
    state: str
    message: str = ""


# Every outcome of this process, the latest last, so that the teacher's command need not read what is printed.
OUTCOMES: list[Outcome] = []


class _Wrong(Exception):
    """What is wrong with an answer, as a sentence for the student, and a table or a picture that shows it."""

    table = ""
    picture: Callable[[], Picture] | None = None


class _NotDone(Exception):
    """Nothing was returned, as by a stub that was left alone."""


# All that Python does in a function without a body, or with nothing but a constant in it.
_OF_A_STUB = {"RESUME", "NOP", "LOAD_CONST", "POP_TOP", "RETURN_CONST", "RETURN_VALUE"}


def grade(
    exercise: str, student: Callable | None, test: Callable[[], None], hint: str, shown: str = "", times: float = 1.0
) -> bool:
    """Run `test` of the function `student`, which raises `_Wrong` or `_NotDone`, and tell the student the outcome.

    A wrong answer gets the hint, and the table `shown` unless `test` made one of its own. A `test` that computes much
    itself has `times` the usual time.

    Examples
    --------
    >>> grade("add", None, lambda: None, hint="try +")
    add: correct.
    True
    """
    picture = None
    try:
        _within_time(functools.partial(_run, test, student), times)
    except _NotDone:
        outcome = Outcome(exercise, "not yet")
        said = "not done yet. The lesson goes on with the package's version."
    except _Wrong as wrong:
        outcome, picture = Outcome(exercise, "wrong", str(wrong)), wrong.picture
        said = "\n".join(part for part in (f"not right yet. {wrong}", wrong.table or shown, f"Hint: {hint}") if part)
    except Exception as error:
        name = "".join(traceback.format_exception_only(error)).strip()  # survives a broken __str__
        where = _failing_line(student, error)
        outcome = Outcome(exercise, "error", f"{where}{name}")
        said = f"your function stopped {where or 'with '}{name}\nHint: {hint}"
    else:
        outcome, said = Outcome(exercise, "done"), "correct."
    OUTCOMES.append(outcome)
    # JupyterLab breaks long lines inside words.
    print("\n".join(textwrap.fill(line, 100) for line in f"{exercise}: {said}".splitlines()))
    if picture and "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        sys.modules["IPython"].display.display(picture())
    return outcome.state == "done"


def _failing_line(student: Callable | None, error: Exception) -> str:
    """Return the last line of the student's own cell that an error came through; empty where it cannot be told."""
    function = getattr(student, "__wrapped__", student) if isinstance(student, types.FunctionType) else None
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file and frame.line]
    return f"in `{textwrap.shorten(lines[-1], 80)}`: " if lines else ""


def _run(test: Callable[[], None], student: Callable | None) -> None:
    try:
        test()
    except _NotDone:
        if isinstance(student, types.FunctionType) and {i.opname for i in dis.get_instructions(student)} - _OF_A_STUB:
            raise _Wrong("Your function returned nothing: does its last line begin with return?") from None
        raise


@contextlib.contextmanager
def _showing(table: str = "", picture: Callable[[], Picture] | None = None) -> Iterator[None]:
    """Show this beside whatever is found wrong inside."""
    try:
        yield
    except _Wrong as wrong:
        wrong.table, wrong.picture = wrong.table or table, wrong.picture or picture
        raise


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows under their heads, the columns aligned and indented.

    Examples
    --------
    >>> print(table(["bits", "levels"], [[1, 2], [2, 4]]))
        bits  levels
           1       2
           2       4
    """
    cells = [list(heads), *([f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("    " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)


def beside(answer: Tensor, wanted: Tensor) -> str:
    """Return two small matrices beside each other: the part of `answer` that is furthest off, and what is wanted there.

    Examples
    --------
    >>> print(beside(torch.zeros(2, 2), torch.eye(2)))
        yours   |  should be
        0    0  |     1    0
        0    0  |     0    1
    """
    answer, wanted = torch.atleast_2d(answer), torch.atleast_2d(wanted)
    place, shape = int((answer - wanted).abs().nan_to_num(nan=math.inf).argmax()), answer.shape
    start = f"    at [{', '.join(str(int(i)) for i in torch.unravel_index(torch.tensor(place), shape)[:-2])}]:\n"
    last = shape[-2] * shape[-1]
    blocks = [t.reshape(-1, *shape[-2:])[place // last][:6, :4].tolist() for t in (answer, wanted)]
    texts = [[[f"{value:.3g}" for value in row] for row in block] for block in blocks]
    wide = max(4, max(len(value) for block in texts for row in block for value in row))
    lines = [["  ".join(value.rjust(wide) for value in row) for row in block] for block in texts]
    across = max(len(lines[0][0]), len("should be"))
    heads = "    " + "yours".ljust(across) + "  |  " + "should be".rjust(across)
    body = [f"    {mine.ljust(across)}  |  {right.rjust(across)}" for mine, right in zip(*lines, strict=True)]
    return (start if answer.dim() > 2 else "") + "\n".join([heads, *body])


def _within_time(test: Callable[[], None], times: float = 1.0) -> None:
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            test()
        except BaseException as error:
            outcome.append(error)

    # A daemon thread: an endless loop in a student's answer must not keep the kernel from going on.
    thread = threading.Thread(target=run, daemon=True, name=THREAD)
    threads, limit = torch.get_num_threads(), TIME_LIMIT * times
    torch.set_num_threads(1)  # the clock below counts all threads, those that wait for each other included
    try:
        computed, clock = time.process_time(), time.monotonic()
        thread.start()
        while thread.is_alive():
            thread.join(min(0.1, TIME_LIMIT))
            late = time.process_time() - computed > limit or time.monotonic() - clock > 3 * limit
            if late and thread.is_alive():
                # It would go on computing, and slow down all that follows; this ends a loop of Python's.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
                )
                thread.join(min(1.0, TIME_LIMIT))
                goes_on = " It still runs: restart the kernel before you go on." if thread.is_alive() else ""
                raise _Wrong(f"It did not finish within {limit:.0f} seconds: is there a loop that never ends?{goes_on}")
    finally:
        torch.set_num_threads(threads)
    if outcome:
        error = outcome[0]
        raise error if isinstance(error, Exception) else _Wrong(f"It stopped with {type(error).__name__}.")


def still_running() -> bool:
    """Tell whether a student's function goes on after its time was up.

    Examples
    --------
    >>> still_running()
    False
    """
    return any(thread.name == THREAD for thread in threading.enumerate())


def _given(answer: Any) -> Any:
    """Return `answer`; raise `_NotDone` if there is none."""
    if answer is None or answer is Ellipsis:
        raise _NotDone
    return answer


def expect_tensor(answer: Any, like: Tensor, what: str) -> Tensor:
    """Return `answer` if it is a tensor of the shape of `like`; raise what is wrong with it otherwise.

    Examples
    --------
    >>> expect_tensor(torch.ones(2), like=torch.zeros(2), what="the sum").tolist()
    [1.0, 1.0]
    """
    if not isinstance(_given(answer), Tensor):
        raise _Wrong(f"{what} should be a tensor, but your function returned {type(answer).__name__}.")
    if answer.shape != like.shape:
        raise _Wrong(f"{what} should have shape {tuple(like.shape)}, but has {tuple(answer.shape)}.")
    if bool(answer.isnan().any()) and not bool(like.isnan().any()):
        raise _Wrong(f"{what} contains NaN (not a number): is something divided by zero?")
    return answer


def expect_close(answer: Any, wanted: Tensor, at: Tensor, what: str) -> None:
    """Raise with a small table of where `answer` differs from `wanted`, for the inputs `at`.

    Examples
    --------
    >>> expect_close(torch.ones(2), torch.ones(2), at=torch.zeros(2), what="the sum")
    """
    answer = expect_tensor(answer, wanted, what).detach().to(wanted.dtype)
    wrong = ~torch.isclose(answer, wanted, rtol=1e-4, atol=1e-5)
    if bool(wrong.any()):
        rows = zip(at[wrong].flatten().tolist(), answer[wrong].tolist(), wanted[wrong].tolist(), strict=False)
        lines = [f"    at {x:8.4g}: {what} is {got:8.4g}, should be {want:8.4g}" for x, got, want in list(rows)[:4]]
        says = f"{what} differs at {int(wrong.sum())} of {wrong.numel()} points"
        with _showing(beside(answer, wanted) if wanted.dim() > 1 else ""):
            raise _Wrong(f"{says}." if wanted.dim() > 1 else "\n".join([f"{says}:", *lines]))


def expect_number(answer: Any, what: str) -> float:
    """Return `answer` as a float if it is one number, a tensor of one element included; raise what is wrong otherwise.

    Examples
    --------
    >>> expect_number(torch.tensor(2.0), what="the sum")
    2.0
    """
    if isinstance(_given(answer), Tensor | np.ndarray) and math.prod(answer.shape) == 1:
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, Real):  # Real, for NumPy has numbers of its own
        raise _Wrong(f"{what} should be one number, but your function returned {reprlib.repr(answer)}.")
    if not math.isfinite(answer):
        raise _Wrong(f"{what} is {answer}: is something divided by zero, or a logarithm taken of 0 or less?")
    return float(answer)


def known_fault(answer: float | Tensor, faults: dict[str, float | Tensor], tolerance: float = 1e-4) -> str:
    """Return the first sentence in `faults` whose wrong result is `answer`, up to a relative `tolerance`; else "".

    Put what is right in front, with the sentence "", where an answer may come so near to it.

    Examples
    --------
    >>> known_fault(6.0, {"This is the sum.": 5.0, "This is the product.": 6.0})
    'This is the product.'
    """
    doubled = lambda value: torch.as_tensor(value, dtype=torch.float64)
    near = lambda wrong: (doubled(answer) - wrong).norm() <= tolerance * wrong.norm()
    return next((sentence for sentence, wrong in faults.items() if near(doubled(wrong))), "")


# ---------------------------------------------------------------- lesson 00


def check_number_of_levels(student: Callable[[int], int]) -> bool:
    """Grade ``number_of_levels(bits)``: how many different numbers that many bits can tell apart.

    Examples
    --------
    >>> check_number_of_levels(lambda bits: 2**bits)
    number_of_levels: correct.
    True
    """

    def test() -> None:
        for bits in (5, 1, 2, 8):  # at 5 bits the usual mistakes give different numbers
            answer = expect_number(student(bits), "The number of levels")
            if answer == 2**bits:
                continue
            says = f"For {bits} bit{'s' if bits > 1 else ''} your function says {answer:g}."
            faults = {
                "Each further bit doubles the count; it does not add 2 to it.": 2 * bits,
                "You took bits to the power of 2; it is the other way round.": bits**2,
                'In Python ^ is not "to the power of"; write **.': 2 ^ bits,
                "One is missing: 1 bit can be 0 or 1, which are two numbers.": 2**bits - 1,
            }
            advice = "Count by hand: 1 bit can be 0 or 1; 2 bits can be 00, 01, 10 or 11."
            raise _Wrong(f"{says} {known_fault(answer, faults) or advice}")

    words = table(["bits", "words"], [[b, " ".join(f"{i:0{b}b}" for i in range(2**b))] for b in (1, 2, 3)])
    return grade("number_of_levels", student, test, "Write down all the words of 1, 2 and 3 bits, and count.", words)


def check_agreement(student: Callable[[Tensor, Tensor], float]) -> bool:
    """Grade ``agreement(logits_a, logits_b)``: the fraction of images to which two networks give the same class.

    Examples
    --------
    >>> check_agreement(lambda a, b: (a.argmax(1) == b.argmax(1)).float().mean())
    agreement: correct.
    True
    """
    a = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 1.0], [1.0, 4.0, 0.0]])
    b = torch.tensor([[2.0, 1.0, 0.5], [0.0, 1.0, 2.0], [0.0, 1.0, 9.0], [4.0, 3.0, 1.0], [3.0, 2.0, 0.5]])

    def test() -> None:
        answer, of_four = (expect_number(student(a[:n], b[:n]), "The agreement") for n in (5, 4))
        if abs(answer - 0.6) < 1e-5 and abs(of_four - 0.75) < 1e-5:
            return
        says = f"3 of 5 images get the same class, so the agreement is 0.6; your function says {answer:g}."
        faults = {
            "That is how many agree; divide by how many there are.": 3,
            "That is the fraction that disagrees.": 0.4,
            "You compared the places of the smallest outputs; the class is that of the largest.": (
                (a.argmin(1) == b.argmin(1)).float().mean()
            ),
            "Give a fraction from 0 to 1, not percent.": 60,
            "You compared the outputs themselves; compare the classes: the largest of each row.": (
                (a == b).float().mean()
            ),
            "You took the largest of each column; each row is an image, so use argmax(1).": (
                (a.argmax(0) == b.argmax(0)).float().mean()
            ),
        }
        if abs(answer - 0.6) < 1e-5:
            raise _Wrong("For other images your function says something wrong: use the tensors that it is given.")
        raise _Wrong(f"{says} {known_fault(answer, faults)}".rstrip())

    classes = zip(a.tolist(), b.tolist(), a.argmax(1).tolist(), b.argmax(1).tolist(), strict=True)
    rows = [[*row, "yes" if row[2] == row[3] else "no"] for row in classes]
    shown = table(["outputs_a", "outputs_b", "class a", "class b", "same"], rows)
    hint = "argmax(1) gives the class of each row; == compares; .float().mean() averages."
    return grade("agreement", student, test, hint, shown)


# ---------------------------------------------------------------- lesson 01


def check_quantizer(student: Callable[[Tensor, int, float, float], Tensor]) -> bool:
    """Grade ``my_quantize(x, bits, low, high)``, the uniform quantizer (values only, no gradient).

    Examples
    --------
    >>> check_quantizer(quantize_uniform)
    my_quantize: correct.
    True
    """
    x = torch.linspace(-1.357, 2.443, 39)  # no value half-way between two levels, where a hair decides

    def test() -> None:
        for bits, low, high in ((2, 0.0, 1.0), (4, -0.5, 1.5), (2, -1.0, 2.0)):
            wanted = quantize_uniform(x, bits, low, high)
            answer = expect_tensor(student(x.clone(), bits, low, high), wanted, "the quantized value").detach().float()
            if torch.allclose(answer, wanted, atol=1e-5):
                continue
            case = f"With bits={bits}, low={low:g}, high={high:g}:"
            with _showing_staircase(x, answer, wanted):
                _name_the_fault_of_a_grid(case, x, answer, bits, low, high)
                expect_close(answer, wanted, at=x, what="the quantized value")

    hint = "clip to [low, high]; subtract low and divide by the step; round; multiply by the step and add low."
    return grade("my_quantize", student, test, hint)


def _showing_staircase(x: Tensor, answer: Tensor, wanted: Tensor) -> contextlib.AbstractContextManager[None]:
    """Show the values at a few places of x, and in a notebook both curves."""

    def picture() -> Picture:
        from .plots import plot_answer

        room = 3 * wanted.abs().max()  # an answer far off must not flatten the curve it is compared with
        return plot_answer(x.numpy(), answer.nan_to_num().clamp(-room, room).numpy(), wanted.numpy())

    few = [round(i * (len(x) - 1) / 8) for i in range(9)]
    rows = [[round(t[i].item(), 3) for t in (x, answer, wanted)] for i in few]
    return _showing(table(["x", "yours", "should be"], rows), picture)


def _name_the_fault_of_a_grid(case: str, x: Tensor, answer: Tensor, bits: int, low: float, high: float) -> None:
    step = (high - low) / (2**bits - 1)
    codes = (quantize_uniform(x, bits, low, high) - low) / step
    levels, inside = len(answer.unique()), (x >= low) & (x <= high)
    above_low = x.clamp(low, high) - low
    faults = {
        "": low + codes * step,
        "the values come back unchanged.": x,
        "the values are clipped, but not rounded.": x.clamp(low, high),
        "you return the number of the level, 0, 1, 2, ...; turn it back into a value.": codes,
        "every value is off by low: what was subtracted before rounding must be added after it.": codes * step,
        "your levels are counted from 0: subtract low before you round, and add it after.": (
            (x.clamp(low, high) / step).round() * step
        ),
        "low is subtracted at the end, too: what was subtracted before rounding must be added after.": (
            codes * step - low
        ),
        "take the nearest level, torch.round, not the one above.": low + step * (above_low / step).ceil(),
        "take the nearest level, torch.round, not the one below.": low + step * (above_low // step),
    }
    if fault := known_fault(answer, faults):
        raise _Wrong(f"{case} {fault}")
    if bool((answer > high + 1e-4).any() or (answer < low - 1e-4).any()):
        raise _Wrong(f"{case} some values lie outside the range from low to high: clip before you round.")
    if levels < 2**bits:
        raise _Wrong(
            f"{case} there are only {levels} levels; {bits} bits name {2**bits}. (In Python 2**bits is a power; 2^bits "
            "is something else.)"
        )
    if levels == 2**bits + 1:
        raise _Wrong(f"{case} there are {levels} levels, one more than {bits} bits can name: n levels have n - 1 gaps.")
    if bool(inside.any()) and float((answer - x)[inside].abs().max()) > 0.75 * step:
        raise _Wrong(
            f"{case} a value moves by more than half a step: take the nearest level, not the one below or above."
        )


def check_bits_needed(student: Callable[[float], int]) -> bool:
    """Grade ``bits_needed(wanted)``: the fewest bits that give a uniform signal at least that ratio.

    Examples
    --------
    >>> check_bits_needed(lambda wanted: math.ceil(math.log2(10 ** (wanted / 20) + 1)))
    bits_needed: correct.
    True
    """

    reach = lambda bits: 20 * math.log10(2**bits - 1)

    def test() -> None:
        for decibels in (20.0, 5.0, 10.0, 16.0, 17.5, 24.0, 40.0, 48.0):  # at 20 dB the usual mistakes differ
            wanted = next(bits for bits in range(1, 20) if reach(bits) >= decibels)
            answer = expect_number(student(decibels), "The number of bits")
            if answer == wanted:
                continue
            says = f"For {decibels:g} dB your function says {answer:g}."
            if answer != int(answer):
                raise _Wrong(f"{says} Bits come whole: round up.")
            if answer == wanted - 1:
                says = f"{says} That many bits reach only {reach(answer):.1f} dB:"
                if answer == math.ceil(decibels / 6.02):
                    raise _Wrong(f"{says} 6.02 dB a bit is too good for few bits; use the exact formula.")
                raise _Wrong(f"{says} round up, not to the nearest.")
            if answer == wanted + 1:
                raise _Wrong(f"{says} One bit fewer is already enough: it reaches {reach(wanted):.1f} dB.")
            raise _Wrong(f"{says} {wanted} bits reach {reach(wanted):.1f} dB.")

    hint = "the ratio of b bits is 20 * log10(2**b - 1); try b = 1, 2, 3, ... in a loop."
    shown = table(["bits", "dB"], [[bits, reach(bits)] for bits in (2, 3, 4)])
    return grade("bits_needed", student, test, hint, shown)


def check_best_clip(student: Callable[[Tensor, int], float]) -> bool:
    """Grade ``best_clip(w, bits)``: the clip whose grid from -clip to clip has the least mean squared error on `w`.

    Examples
    --------
    >>> def best_clip(w, bits):
    ...     clips = [w.abs().max().item() * i / 100 for i in range(1, 101)]
    ...     return min(clips, key=lambda clip: (quantize_uniform(w, bits, -clip, clip) - w).square().mean())
    >>> check_best_clip(best_clip)
    best_clip: correct.
    True
    """

    def test() -> None:
        generator = torch.Generator().manual_seed(0)
        for bits, spread, tails in ((2, 1.0, "normal"), (3, 0.1, "normal"), (4, 5.0, "heavy-tailed")):
            w = torch.randn(2000, generator=generator) * spread
            w = w * w.abs() if tails == "heavy-tailed" else w  # so that no rule that fits the bell alone will do
            largest = w.abs().max().item()
            errors = {clip: _grid_error(w, bits, clip) for clip in (largest * torch.arange(0.02, 1.01, 0.01)).tolist()}
            best = min(errors, key=errors.get)
            answer = expect_number(student(w.clone(), bits), "The clip")
            if answer > 0 and _grid_error(w, bits, answer) <= 1.02 * errors[best]:
                continue
            typical = w.square().mean().sqrt()
            says = f"For {tails} weights, typically {typical:.2g}, your clip at {bits} bits is {answer:.4g}."
            if answer <= 0:
                raise _Wrong(f"{says} A clip is a number above 0.")
            if abs(answer - errors[best]) < 0.02 * errors[best]:
                raise _Wrong(f"{says} That is the smallest error itself; return the clip that reaches it.")
            if abs(answer - largest) < 0.02 * largest:
                raise _Wrong(
                    f"{says} That is the largest weight, so nothing is clipped; a smaller clip rounds more finely."
                )
            times = _grid_error(w, bits, answer) / errors[best]
            side = "small" if answer < best else "large"
            rows = [[clip, _grid_error(w, bits, clip)] for clip in sorted({answer, best, 0.5 * best, largest})]
            with _showing(
                table(["clip", "mean squared error"], rows), functools.partial(_picture_of_clips, w, bits, answer)
            ):
                raise _Wrong(f"{says} That is too {side}: its error is {times:.2f} times the least one, at {best:.3g}.")

    hint = "try a hundred clips from a hundredth of the largest |w| up to all of it, and keep the one of least error."
    return grade("best_clip", student, test, hint)


def _picture_of_clips(w: Tensor, bits: int, answer: float) -> Picture:
    from .plots import plot_clipping

    clips = w.abs().max() * torch.linspace(0.05, 1, 60)
    clipping = torch.stack([(w.clamp(-clip, clip) - w).square().mean() for clip in clips])
    both = torch.tensor([_grid_error(w, bits, clip) for clip in clips.tolist()])
    shown = min(answer, 1.2 * clips[-1].item())
    return plot_clipping(w.numpy(), bits, shown, clips.numpy(), (both - clipping).numpy(), clipping.numpy())


def _grid_error(w: Tensor, bits: int, clip: float) -> float:
    return (quantize_uniform(w, bits, -clip, clip) - w).square().mean().item()


def check_round_ste(student: Callable[[Tensor], Tensor]) -> bool:
    """Grade ``my_round(x)``: rounds on the way forward, and hands the gradient through unchanged on the way back.

    Examples
    --------
    >>> check_round_ste(lambda x: x + (x.round() - x).detach())
    my_round: correct.
    True
    """
    at = torch.tensor([-1.7, -0.6, 0.2, 0.8, 1.4, 2.9])

    def test() -> None:
        x = at.clone().requires_grad_()
        answer = expect_tensor(student(x), at, "the rounded value").float()
        if not torch.equal(x.detach(), at):
            raise _Wrong("Your function changes `x` itself: the latent number would be lost. Return a new tensor.")
        if torch.allclose(answer, at, atol=1e-5):
            raise _Wrong("The values come back unrounded: what you detach must hold the rounding.")
        expect_close(answer, at.round(), at=at, what="the rounded value")
        if not answer.requires_grad:
            raise _Wrong("The values are right, but the result is cut off from x: no gradient can flow back at all.")
        upstream = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25, 4.0])
        (gradient,) = torch.autograd.grad(answer, x, upstream, allow_unused=True)
        if gradient is None:
            raise _Wrong("The values are right, but the result is a new start, cut off from x: no gradient reaches x.")
        rows = zip(*(t.tolist() for t in (at, answer, upstream, gradient)), strict=True)
        with _showing(table(["x", "value", "gradient in", "gradient out"], list(rows))):
            if not bool(gradient.any()):
                raise _Wrong(
                    "The values are right, but the gradient is 0 everywhere: that is the gradient of rounding itself."
                )
            if torch.allclose(gradient, torch.ones_like(at)):
                raise _Wrong(
                    "The gradient is 1 whatever comes from above: multiply by, or return, the gradient that comes in."
                )
            expect_close(gradient, upstream, at=at, what="the gradient")

    hint = "x + (something).detach(): the value of the sum must be x.round(), and only x carries a gradient."
    return grade("my_round", student, test, hint)


# ---------------------------------------------------------------- lesson 02


def check_pact(student: Callable[[Tensor, float, int], Tensor]) -> bool:
    """Grade ``my_pact(x, alpha, bits)``: the values of PACT, without gradients.

    Examples
    --------
    >>> check_pact(lambda x, alpha, bits: quantize_uniform(x, bits, 0.0, alpha))
    my_pact: correct.
    True
    """
    x = torch.linspace(-1.357, 4.443, 59)  # no value half-way between two levels, where a hair decides

    def test() -> None:
        for alpha, bits in ((1.5, 2), (3.0, 2), (2.5, 4)):  # first a step that is not 1, the step of a level's number
            wanted = quantize_uniform(x, bits, 0.0, alpha)
            answer = expect_tensor(student(x.clone(), alpha, bits), wanted, "the activation").detach().float()
            if torch.allclose(answer, wanted, atol=1e-5):
                continue
            case = f"With alpha={alpha:g}, bits={bits}:"
            with _showing_staircase(x, answer, wanted):
                if bool((answer < -1e-4).any()):
                    raise _Wrong(f"{case} some activations are below 0: negative inputs must become 0.")
                if bool((answer[x > alpha + 0.5] > alpha + 1e-4).any()) and not bool((answer % 1).any()):
                    raise _Wrong(f"{case} you return the number of the level, 0, 1, 2, ...; multiply by the step.")
                if bool((answer > alpha + 1e-4).any()):
                    raise _Wrong(f"{case} some activations are above alpha: clip at alpha, not only at 0.")
                if torch.allclose(answer, x.clamp(0, alpha), atol=1e-5):
                    raise _Wrong(f"{case} the activations are clipped, but not rounded.")
                _name_the_fault_of_a_grid(case, x, answer, bits, 0.0, alpha)
                expect_close(answer, wanted, at=x, what="the activation")

    hint = "clip x to [0, alpha]; the step is alpha / (2**bits - 1); divide by it, round, multiply by it."
    return grade("my_pact", student, test, hint)


def check_alpha_gradient(student: Callable[[Tensor, float, Tensor], Tensor]) -> bool:
    """Grade ``alpha_gradient(x, alpha, grad)``: the slope of the loss by alpha, one number.

    Examples
    --------
    >>> check_alpha_gradient(lambda x, alpha, grad: grad[x >= alpha].sum())
    alpha_gradient: correct.
    True
    """
    x = torch.tensor([[-1.0, 0.25, 1.5, 2.0], [2.0, 2.5, 5.0, 0.0]])
    grad = torch.tensor([[0.5, -4.0, 7.25, 0.25], [0.5, -1.25, 3.5, 16.0]])

    def test() -> None:
        for alpha in (2.0, 1.0, 9.0):
            clipped = x >= alpha
            wanted = grad[clipped].sum().item()
            answer = student(x.clone(), alpha, grad.clone())
            case = f"With alpha={alpha:g}:"
            if isinstance(answer, Tensor) and answer.shape == x.shape:
                raise _Wrong(f"{case} you return one slope an input; there is one alpha, so add them up.")
            number = expect_number(answer, "The gradient of alpha")
            if abs(number - wanted) < 1e-5:
                continue
            says = f"{case} your function returns {number:g}, should be {wanted:g}."
            felt = ["yes" if c else "no" for c in clipped.flatten()]
            rows = list(zip(x.flatten().tolist(), grad.flatten().tolist(), felt, strict=True))
            faults = {
                "You counted the clipped inputs; add up what `grad` holds at them.": clipped.sum(),
                "An input that equals alpha is missing: it counts as clipped.": grad[x > alpha].sum(),
                "You added over the inputs up to alpha; it is those from alpha on.": grad[x <= alpha].sum(),
                "An input that equals alpha counts half; it counts as clipped, wholly.": (
                    grad[x > alpha].sum() + grad[x == alpha].sum() / 2
                ),
                "You added up the inputs; add up `grad`.": x[clipped].sum(),
                "You added over the inputs below alpha; those do not feel alpha.": grad[~clipped].sum(),
                "That is where the slope by x is 1; alpha is felt elsewhere.": grad[(x > 0) & (x < alpha)].sum(),
                "You added over all inputs; only the clipped ones feel alpha.": grad.sum(),
                "The sign is wrong: raising alpha raises a clipped output.": -wanted,
                "That is the mean; the contributions add up.": (grad * clipped).mean(),
                "That is the mean over the clipped inputs; the contributions add up.": grad[clipped].mean(),
            }
            with _showing(table(["x", "grad", "x >= alpha"], rows)):
                raise _Wrong(f"{says} {known_fault(number, faults)}".rstrip())

    hint = "which inputs have x >= alpha? Add up grad there."
    return grade("alpha_gradient", student, test, hint)


def check_steps_to_shrink(student: Callable[[float, float, float, float], float]) -> bool:
    """Grade ``steps_to_shrink(start, end, lr, weight_decay)`` for SGD with momentum 0.9.

    Examples
    --------
    >>> check_steps_to_shrink(lambda start, end, lr, decay: math.log(start / end) / (10 * lr * decay))
    steps_to_shrink: correct.
    True
    """

    def test() -> None:
        for start, end, lr, decay in ((10.0, 2.0, 0.05, 5e-4), (8.0, 1.0, 0.1, 2e-4), (4.0, 3.0, 0.02, 1e-3)):
            wanted = math.log(start / end) / (10 * lr * decay)
            answer = expect_number(student(start, end, lr, decay), "The number of steps")
            if abs(answer - wanted) <= max(1.0, 0.01 * wanted):
                continue
            says = (
                f"From {start:g} to {end:g} with lr={lr:g} and decay={decay:g} your function says {answer:.4g} steps."
            )
            by_step = 10 * lr * decay
            faults = {
                "That is ten times too many: momentum 0.9 makes every step ten times as long.": 10 * wanted,
                "You let alpha lose the same amount each step; it loses the same fraction.": (start - end) / by_step,
                "You kept the first step's loss; as alpha shrinks, it loses less and less.": (
                    (start - end) / (by_step * start)
                ),
                "You took the logarithm to base 10; exp needs the natural one, math.log.": wanted / math.log(10),
                "A number of steps is positive: turn the fraction in the logarithm over.": -wanted,
                "You took the logarithm to base 2; exp needs the natural one, math.log.": wanted / math.log(2),
                "Only 10 divides there: put 10 * lr * weight_decay in brackets.": wanted * by_step**2 / 100,
            }
            raise _Wrong(f"{says} {known_fault(answer, faults, 0.01) or f'It takes about {wanted:.0f}.'}")

    hint = "after n steps alpha is about start * exp(-10 * lr * decay * n): set it to end and solve for n."
    shown = table(["steps", "alpha"], [[n, 10 * math.exp(-10 * 0.05 * 5e-4 * n)] for n in range(0, 10_001, 2500)])
    return grade("steps_to_shrink", student, test, hint, f"    Starting at 10 with lr=0.05 and decay=0.0005:\n{shown}")


# ---------------------------------------------------------------- lesson 03


def check_gradient_map(student: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> bool:
    """Grade ``gradient_map(model, x, target)``: the sum over channels of ``|d logit of target / d x|``, ``(N, H, W)``.

    Examples
    --------
    >>> def gradient_map(model, x, target):
    ...     x = x.clone().requires_grad_()
    ...     score = model(x).gather(1, target[:, None]).sum()
    ...     return torch.autograd.grad(score, x)[0].abs().sum(1)
    >>> check_gradient_map(gradient_map)
    gradient_map: correct.
    True
    """
    model, x = _smooth_model_and_images()
    target = torch.tensor([2, 0, 1])

    def gradient(scores: Callable[[Tensor], Tensor]) -> Tensor:
        at = x.clone().requires_grad_()
        return torch.autograd.grad(scores(model(at)).sum(), at)[0]

    def magnitude(scores: Callable[[Tensor], Tensor]) -> Tensor:
        return gradient(scores).abs().sum(1)

    def test() -> None:
        signed = gradient(lambda logits: logits.gather(1, target[:, None]))
        wanted = signed.abs().sum(1)
        answer = student(model, x.clone(), target.clone())
        if isinstance(answer, Tensor) and answer.shape == x.shape:
            raise _Wrong(f"The map has shape {tuple(x.shape)}: sum the magnitudes over the channels, dimension 1.")
        answer = expect_tensor(answer, wanted, "the map").detach()
        faults = {
            "the sign is still there: take the magnitude, .abs(), of the gradient.": signed.sum(1),
            "you summed the channels first and took the magnitude then; it is the other way round.": signed.sum(
                1
            ).abs(),
            "the second channel is missing: sum over all channels.": signed.abs()[:, 0],
            "this is the mean over the channels; take their sum.": signed.abs().mean(1),
            "you explain the largest logit; explain the class that `target` names.": magnitude(
                lambda logits: logits.max(1).values
            ),
            "you explain the sum of all logits; pick each image's own class with gather.": magnitude(lambda z: z),
            "you explain the probability; take the logit itself, without softmax.": magnitude(
                lambda logits: logits.softmax(1).gather(1, target[:, None])
            ),
            "you explain the cross-entropy or log-probability; take the logit itself.": magnitude(
                lambda logits: logits.log_softmax(1).gather(1, target[:, None])
            ),
            "you explain the mean cross-entropy; take the sum of the logits themselves.": magnitude(
                lambda logits: logits.log_softmax(1).gather(1, target[:, None]) / len(x)
            ),
            "this is the largest of the channels; take their sum.": signed.abs().amax(1),
            "this is the length over the channels, a root of squares; add the magnitudes.": signed.norm(dim=1),
            "you explain the mean over the images; take their sum, so that an image's map is its own.": wanted / len(x),
        }
        _name_the_fault("The map has the right shape, but", answer, wanted, faults)
        expect_close(answer, wanted, at=wanted, what="the map")

    hint = (
        "x = x.clone().requires_grad_(); score = model(x).gather(1, target[:, None]).sum(); "
        "torch.autograd.grad(score, x)[0]; then .abs().sum(1)."
    )
    return grade("gradient_map", student, test, hint)


def check_integrated_gradients(student: Callable[[nn.Module, Tensor, Tensor, Tensor, int], Tensor]) -> bool:
    """Grade ``my_integrated_gradients(model, x, baseline, target, steps)``, signed, of the shape of x.

    Any rule for the points on the way is accepted that comes close to the integral at 200 steps.

    Examples
    --------
    >>> def my_integrated_gradients(model, x, baseline, target, steps):
    ...     total = torch.zeros_like(x)
    ...     for k in range(steps):
    ...         point = (baseline + (k + 0.5) / steps * (x - baseline)).requires_grad_()
    ...         score = model(point).gather(1, target[:, None]).sum()
    ...         total += torch.autograd.grad(score, point)[0]
    ...     return (x - baseline) * total / steps
    >>> check_integrated_gradients(my_integrated_gradients)
    my_integrated_gradients: correct.
    True
    """
    model, x = _smooth_model_and_images()
    target, steps = torch.tensor([2, 0, 1]), 200
    baseline = torch.full_like(x[:1], -0.7)

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(model(at).gather(1, target[:, None]).sum(), at)[0]

    def average(start: Tensor, end: Tensor = x, of: Callable[[Tensor], Tensor] = lambda slope: slope) -> Tensor:
        ways = ((torch.arange(steps) + 0.5) / steps).view(-1, 1, 1, 1, 1)
        points = (start + ways * (end - start)).flatten(0, 1).requires_grad_()
        scores = model(points).gather(1, target.repeat(steps)[:, None]).sum()
        return of(torch.autograd.grad(scores, points)[0]).unflatten(0, (steps, -1)).mean(0)

    def test() -> None:
        mean, way = average(baseline), x - baseline
        wanted = way * mean
        answer = student(model, x.clone(), baseline.clone(), target.clone(), steps)
        if isinstance(answer, Tensor) and answer.shape == wanted[:, 0].shape:
            raise _Wrong(f"The answer has shape {tuple(answer.shape)}: keep the channels, as in x.")
        answer = expect_tensor(answer, wanted, "the attribution").detach()
        faults = {
            "this is the mean gradient alone: multiply it by (x - baseline).": mean,
            "the mean gradient is multiplied by x: multiply by (x - baseline).": x * mean,
            "it is about as many times too large as there are steps: divide the sum by steps.": steps * wanted,
            "the sign is lost: without it the attributions cannot add up.": wanted.abs(),
            "you added up the gradients' magnitudes: keep their signs.": way * average(baseline, of=torch.abs),
            "this is the gradient at x alone: take it at every point on the way.": way * gradient(x),
            "the points on the way lack the baseline: add it to each.": way * average(torch.zeros_like(x), way),
            "the way starts at 0: start it at the baseline.": way * average(torch.zeros_like(x)),
            "your way starts at 0 and ends at x: start it at the baseline.": x * average(torch.zeros_like(x)),
            "the sign is turned round: it is (x - baseline).": -wanted,
            "the way goes along x: it should go along (x - baseline).": way * average(baseline, baseline + x),
            "only the last point's gradient counts: add all of them up.": way * gradient(x) / steps,
            "only the first point's gradient counts: does return stand inside the loop?": way
            * gradient(baseline.expand_as(x))
            / steps,
            "you explain the mean over the images; take their sum, so that an image's map is its own.": wanted / len(x),
        }
        _name_the_fault("The attribution has the right shape, but", answer, wanted, faults, tolerance=0.02)
        missing = (answer - wanted).abs().max() / wanted.abs().max()
        if not missing < 0.02:  # this holds for NaN, too
            sums, promised = answer.flatten(1).sum(1), model(x) - model(baseline)
            promised = promised.gather(1, target[:, None])[:, 0]
            worst = int((sums - promised).abs().argmax())
            with _showing(beside(answer, wanted)):
                if (sums - promised).abs().max() < 0.02 * promised.abs().max():
                    raise _Wrong("The sums are right, but not the single numbers: are all points on the straight way?")
                raise _Wrong(
                    f"For image {worst} it sums to {sums[worst]:.3f}, but the logit changes by {promised[worst]:.3f}."
                )
        # Where the slope is the same everywhere, every mean of points is exact, however few they are.
        flat = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).requires_grad_(False)
        exact = way * flat[1].weight[target].view_as(x)
        few = expect_tensor(student(flat, x.clone(), baseline.clone(), target.clone(), 4), exact, "the attribution")
        few = few.detach().to(exact.dtype)
        if not torch.allclose(few, exact, atol=1e-4):
            times = float((few * exact).sum() / exact.square().sum())
            raise _Wrong(
                f"With 4 steps your gradients count {4 * times:.3g} times, not 4: divide by as many as you add up."
            )
        if torch.allclose(student(model, x.clone(), baseline.clone(), target.clone(), 2).detach(), answer):
            raise _Wrong(
                "With 2 steps your function returns the same as with 200: take as many points as `steps` says."
            )

    hint = (
        "for each k: point = (baseline + (k + 0.5) / steps * (x - baseline)).requires_grad_(); add up the gradients of "
        "the target's logit."
    )
    return grade("my_integrated_gradients", student, test, hint)


def check_foreground_share(student: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Grade ``foreground_share(maps, mask)``: the share of each map's sum that lies where the mask is True, ``(N,)``.

    Examples
    --------
    >>> check_foreground_share(lambda maps, mask: (maps * mask).sum((1, 2)) / maps.sum((1, 2)))
    foreground_share: correct.
    True
    """
    maps = torch.tensor([[[4.0, 1.0], [2.0, 3.0]], [[0.5, 0.0], [0.25, 0.25]]])
    mask = torch.tensor([[[True, False], [True, True]], [[False, True], [True, False]]])

    def test() -> None:
        total, inside = maps.sum((1, 2)), (maps * mask).sum((1, 2))
        wanted = inside / total
        answer = student(maps.clone(), mask.clone())
        if isinstance(answer, float | int) or (isinstance(answer, Tensor) and answer.dim() == 0):
            raise _Wrong("There should be one number for each map: sum over dimensions 1 and 2, not over the images.")
        answer = expect_tensor(answer, wanted, "the share").detach()
        pixels = mask.sum((1, 2))
        faults = {
            "you return the sum on the object; divide it by the sum of the whole map.": inside,
            "this is the share of the background.": 1 - wanted,
            "you divided by the sum of all maps together; divide by each map's own.": inside / maps.sum(),
            "you divided by the sum of the background; divide by the sum of the whole map.": inside / (total - inside),
            "give a fraction from 0 to 1, not percent.": 100 * wanted,
            "you divided by the number of the object's pixels; divide by the sum of the map.": inside / pixels,
            "you divided by the number of pixels; divide by the sum of the map.": inside / mask[0].numel(),
            "this is the object's share of the area; the map does not enter.": pixels / mask[0].numel(),
        }
        _name_the_fault("There is one number a map, but", answer, wanted, faults)
        expect_close(answer, wanted, at=torch.arange(2.0), what="the share")

    return grade(
        "foreground_share", student, test, "maps * mask is 0 off the object; sum it over rows and columns; divide."
    )


def _smooth_model_and_images() -> tuple[nn.Module, Tensor]:
    """Return a small smooth network for images with two channels, and three images."""
    with seeded(0, torch.device("cpu")):
        layers = [nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)]
        model = nn.Sequential(*layers).requires_grad_(False)
        model[3].weight.mul_(3)
        return model, torch.randn(3, 2, 5, 5)


def _name_the_fault(
    start: str, answer: Tensor, wanted: Tensor, faults: dict[str, Tensor], tolerance: float = 1e-3
) -> None:
    """Raise the sentence of the fault that gives `answer`, unless it is about what is wanted."""
    fault = known_fault(answer, {"": wanted} | faults, tolerance)
    if fault:
        with _showing(beside(answer, wanted)):
            raise _Wrong(f"{start} {fault}")


# ---------------------------------------------------------------- lesson 04


def check_hide_pixels(student: Callable[[Tensor, Tensor, int, float], Tensor]) -> bool:
    """Grade ``hide_pixels(x, gradient, k, value)``: in each image, `value` at the k pixels of least ``|gradient|``.

    Examples
    --------
    >>> def hide_pixels(x, gradient, k, value):
    ...     order = gradient.abs().flatten(1).argsort(1)
    ...     hidden = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :k], True)
    ...     return torch.where(hidden.view(len(x), 1, *x.shape[2:]), value, x)
    >>> check_hide_pixels(hide_pixels)
    hide_pixels: correct.
    True
    """
    generator = torch.Generator().manual_seed(0)
    x, k, value = torch.rand(3, 2, 4, 5, generator=generator), 7, -3.0
    gradient = torch.randn(3, 4, 5, generator=generator) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1)

    def hidden(score: Tensor, count: int) -> Tensor:
        order = score.flatten(1).argsort(1)
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :count], True)
        return torch.where(chosen.view(3, 1, 4, 5), value, x)

    def test() -> None:
        wanted = hidden(gradient.abs(), k)
        given = x.clone()
        slope = gradient.clone()
        answer = expect_tensor(student(given, slope, k, value), wanted, "the masked image").detach()
        if not torch.equal(given, x):
            raise _Wrong("Your function changes `x` itself, which others may still need: start with x.clone().")
        if not torch.equal(slope, gradient):
            raise _Wrong("Your function changes `gradient` itself, which others may still need: use gradient.abs().")
        edge = gradient.abs().flatten().sort().values[3 * k - 1]
        faults = {
            "the images come back unchanged.": x,
            "everything is replaced: make one row of each image first, gradient.abs().flatten(1).": torch.full_like(
                x, value
            ),
            "you took the smallest gradients with their sign, so the most negative go first: take .abs().": hidden(
                gradient, k
            ),
            "you replaced the most salient pixels; it is the least salient ones.": hidden(-gradient.abs(), k),
            "one pixel too few is replaced in each image: exactly k go.": hidden(gradient.abs(), k - 1),
            "one pixel too many is replaced in each image: exactly k go.": hidden(gradient.abs(), k + 1),
            "you replaced all pixels but k: it is the k least salient that go.": hidden(gradient.abs(), 20 - k),
            "you kept the pixels that should go, and replaced those that should stay.": torch.where(
                wanted == value, x, value
            ),
            "you ranked the pixels of all images together; each image gives up k of its own.": torch.where(
                (gradient.abs() <= edge)[:, None], value, x
            ),
            "argsort gives places, not ranks: mark True at the places order[:, :k].": torch.where(
                (gradient.abs().flatten(1).argsort(1) < k).view(3, 1, 4, 5), value, x
            ),
            "only one channel is replaced: a pixel goes with all its channels.": torch.cat(
                [wanted[:, :1], x[:, 1:]], 1
            ),
            "the replaced pixels are 0; put `value` there.": torch.where(wanted == value, 0.0, x),
        }
        _name_the_fault("The shape is right, but", answer, wanted, faults)
        expect_close(answer, wanted, at=wanted, what="the masked image")

    hint = "gradient.abs().flatten(1).argsort(1)[:, :k] are the places; scatter True there; then torch.where."
    return grade("hide_pixels", student, test, hint)


def check_divergence(student: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Grade ``divergence(logits, masked_logits)``: KL(p || q) in nats, the mean over the images.

    Examples
    --------
    >>> def divergence(logits, masked_logits):
    ...     log_p, log_q = logits.log_softmax(1), masked_logits.log_softmax(1)
    ...     return (log_p.exp() * (log_p - log_q)).sum(1).mean()
    >>> check_divergence(divergence)
    divergence: correct.
    True
    """
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.5, 3.0], [1.0, 1.2, -2.0], [0.0, 0.3, 0.1]])
    masked = torch.tensor([[0.5, 0.0, 0.2], [0.0, 2.5, 1.0], [-1.0, 1.0, 0.0], [1.5, 0.0, 0.4]])

    def terms(of: Tensor, other: Tensor, over: int = 1) -> Tensor:
        log_p, log_q = of.log_softmax(over), other.log_softmax(over)
        return log_p.exp() * (log_p - log_q)

    def test() -> None:
        each = terms(logits, masked).sum(1)
        answer = student(logits.clone(), masked.clone())
        if isinstance(answer, Tensor) and answer.shape == each.shape:
            raise _Wrong("You return one number an image; take their mean.")
        number, wanted = expect_number(answer, "The divergence"), each.mean().item()
        says = f"The divergence should be {wanted:.4f}; your function says {number:.4f}."
        log_p, log_q = logits.log_softmax(1), masked.log_softmax(1)
        faults = {
            "The two predictions have changed places.": terms(masked, logits).sum(1).mean(),
            "That is the sum over the images; take their mean.": each.sum(),
            "Sum over the classes before you take the mean over the images.": wanted / 3,
            "Your softmax runs over the images; use dimension 1.": terms(logits, masked, over=0).sum(1).mean(),
            "The logarithms are not weighted by p.": (log_p - log_q).sum(1).mean(),
            "That is the cross-entropy of p and q: log p is missing.": -(log_p.exp() * log_q).sum(1).mean(),
            "These are logits: take log_softmax first.": (log_p.exp() * (logits - masked)).sum(1).mean(),
            "The weight is p, not log p: log_p.exp() is p.": (log_p * (log_p - log_q)).sum(1).mean(),
            "The logarithm of q is missing.": (log_p.exp() * (log_p - log_q.exp())).sum(1).mean(),
            "The sign is turned round: a divergence is never below 0.": -wanted,
            "The weight is q; p, of the whole image, is the reference.": -terms(masked, logits).sum(1).mean(),
            "That is in bits: for nats take the natural logarithm.": wanted / math.log(2),
            "Take the natural logarithm, not that to base 10.": wanted / math.log(10),
        }
        if abs(number - wanted) > 1e-4:
            raise _Wrong(f"{says} {known_fault(number, faults)}".rstrip())
        of_three = expect_number(student(logits[:3], masked[:3]), "The divergence")
        if abs(of_three - each[:3].mean().item()) > 1e-4:
            raise _Wrong("With three images your function says something wrong: use the tensors that it is given.")
        far = float(student(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])))
        if not math.isclose(far, 200.0, rel_tol=1e-3):
            raise _Wrong(f"For logits of 200 it should be 200, and you get {far}: use log_softmax, not log of softmax.")

    p, q = logits.softmax(1), masked.softmax(1)
    rounded = lambda values: [round(value, 2) for value in values]
    rows = zip(map(rounded, p.tolist()), map(rounded, q.tolist()), terms(logits, masked).sum(1).tolist(), strict=True)
    shown = table(["p", "q", "sum of p (log p - log q)"], list(rows))
    return grade(
        "divergence", student, test, "log_p = logits.log_softmax(1), log_q likewise; then p (log p - log q).", shown
    )


def check_guided_loss(student: Callable[[nn.Module, Tensor, Tensor, float, float], Tensor]) -> bool:
    """Grade ``guided_loss(model, x, y, ratio, weight)``: cross-entropy plus weight times the divergence, fill "mean".

    The clean side of the divergence may be detached or not.

    Examples
    --------
    >>> def guided_loss(model, x, y, ratio, weight):
    ...     x = x.clone().requires_grad_()
    ...     logits = model(x)
    ...     cross_entropy = nn.functional.cross_entropy(logits, y)
    ...     (gradient,) = torch.autograd.grad(cross_entropy, x, retain_graph=True)
    ...     masked = mask_least_salient(x.detach(), gradient, ratio, fill="mean")
    ...     log_p, log_q = logits.log_softmax(1), model(masked).log_softmax(1)
    ...     return cross_entropy + weight * (log_p.exp() * (log_p - log_q)).sum(1).mean()
    >>> check_guided_loss(guided_loss)
    guided_loss: correct.
    True
    """
    model, x = _smooth_model_and_images()
    model.requires_grad_(True)
    x = 3 * x  # so that the mask moves the prediction far, and wrong answers differ
    y, ratio, weight = torch.tensor([2, 0, 1]), 0.4, 2.5

    def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - log_q)).sum(1).mean()

    def predictions(sign: float = 1.0, rank_by: str = "magnitude", score: str = "loss") -> tuple[Tensor, Tensor]:
        at = x.clone().requires_grad_()
        logits = model(at)
        wanted = nn.functional.cross_entropy(logits, y) if score == "loss" else logits.gather(1, y[:, None]).sum()
        (gradient,) = torch.autograd.grad(wanted, at, retain_graph=True)
        if sign < 0:
            gradient = 1 / gradient  # turns the order of the magnitudes round
        masked = mask_least_salient(x, gradient, ratio, rank_by, fill="mean")
        return logits.log_softmax(1), model(masked).log_softmax(1)

    def test() -> None:
        whole, masked = predictions()
        cross_entropy = nn.functional.nll_loss(whole, y)
        divergence, reversed_divergence = kl(whole, masked), kl(masked, whole)
        wanted = cross_entropy + weight * divergence
        answer = student(model, x.clone(), y.clone(), ratio, weight)
        number = expect_number(answer, "The loss")
        faults = {
            "That is the cross-entropy alone: add the divergence.": cross_entropy,
            "That is the divergence alone: add the cross-entropy.": weight * divergence,
            "The weight is missing.": cross_entropy + divergence,
            "The cross-entropy is the sum over the images; take their mean.": len(x) * cross_entropy
            + weight * divergence,
            "The divergence is the sum over the images; take their mean.": cross_entropy + weight * len(x) * divergence,
            "Sum the divergence over the classes before you take the mean over the images.": cross_entropy
            + weight * divergence / 3,
            "The weight belongs to the divergence, not to the cross-entropy.": weight * cross_entropy + divergence,
            "The weight multiplies the divergence alone.": weight * (cross_entropy + divergence),
            "The two predictions in the divergence have changed places.": cross_entropy + weight * reversed_divergence,
            "The sign of the divergence is turned round.": cross_entropy - weight * divergence,
            "You hid the most salient pixels.": cross_entropy + weight * kl(*predictions(sign=-1)),
            "You ranked by the signed gradient; rank by magnitude.": cross_entropy
            + weight * kl(*predictions(rank_by="signed")),
            "You ranked by the logit's gradient; here the cross-entropy's is asked for.": cross_entropy
            + weight * kl(*predictions(score="logit")),
        }
        if abs(number - wanted.item()) > 1e-4:
            if abs(number - expect_number(student(model, x.clone(), y.clone(), ratio, weight), "The loss")) > 1e-6:
                raise _Wrong('Your loss differs from call to call: give mask_least_salient the fill "mean".')
            row = [cross_entropy.item(), weight, divergence.item(), wanted.item()]
            with _showing(table(["cross-entropy", "weight", "divergence", "loss"], [row])):
                says = f"The loss should be {row[-1]:.4f}; your function says {number:.4f}."
                raise _Wrong(f"{says} {known_fault(number, faults)}".rstrip())
        follows = {
            who: cross_entropy + weight * kl(log_p, log_q)
            for who, log_p, log_q in (("masked", whole.detach(), masked), ("whole", whole, masked.detach()))
        }
        _check_learns_from_both_terms(model, answer, cross_entropy, (wanted, follows["masked"]), follows["whole"])

    hint = (
        "x = x.clone().requires_grad_(); the gradient of the cross-entropy at x (retain_graph=True); "
        'mask_least_salient with fill="mean"; model again; add up.'
    )
    return grade("guided_loss", student, test, hint)


def _check_learns_from_both_terms(
    model: nn.Module, answer: Any, cross_entropy: Tensor, allowed: Sequence[Tensor], backwards: Tensor
) -> None:
    """Raise unless the gradient of `answer` is that of one of the `allowed` losses."""
    weights = list(model.parameters())
    if not isinstance(answer, Tensor) or not answer.requires_grad:
        raise _Wrong("The number is right, but no gradient can flow back from it: return a tensor, not detached.")
    if any(p.grad is not None for p in weights):
        raise _Wrong(
            "The number is right, but your function leaves gradients in the weights, and the step that follows would "
            "add its own to them: use torch.autograd.grad instead of backward()."
        )
    try:
        slopes = torch.autograd.grad(answer, weights, allow_unused=True)
    except RuntimeError:
        raise _Wrong(
            "The number is right, but its backward pass fails: use retain_graph=True in autograd.grad."
        ) from None

    def same(loss: Tensor) -> bool:
        wanted = torch.autograd.grad(loss, weights, retain_graph=True)
        return all(s is not None and torch.allclose(s, w, atol=1e-6) for s, w in zip(slopes, wanted, strict=True))

    if any(same(loss) for loss in allowed):
        return
    if same(cross_entropy):
        raise _Wrong("The number is right, but the network cannot learn from the divergence: its gradient is cut off.")
    if same(backwards):
        raise _Wrong(
            "The number is right, but the divergence does not move the prediction for the masked image: detach the "
            "whole image's, or neither."
        )
    raise _Wrong("The number is right, but its gradient is not the loss's: what was detached?")


def check_plain_steps(student: Callable[[int, int, int], float]) -> bool:
    """Grade ``plain_steps(forward, to_input, full)``: the cost of these passes in units of a plain training step.

    Examples
    --------
    >>> check_plain_steps(lambda forward, to_input, full: (forward + to_input + 2 * full) / 3)
    plain_steps: correct.
    True
    """

    def test() -> None:
        for forward, to_input, full in ((5, 2, 1), (1, 0, 1), (3, 1, 2), (2, 0, 2)):
            wanted = (forward + to_input + 2 * full) / 3
            answer = expect_number(student(forward, to_input, full), "The cost")
            if abs(answer - wanted) < 1e-2:  # so that an answer rounded to two places passes
                continue
            says = f"For {forward} forward, {to_input} to the input, {full} full your function says {answer:.3g}."
            faults = {
                "You rounded to a whole number: leave the fraction.": round(wanted),
                "You divided by //, which drops the fraction: divide by /.": wanted // 1,
                "That is in units; a plain step has 3 of them, so divide by 3.": 3 * wanted,
                "A full backward pass costs 2 units, so a plain step has 3.": (forward + to_input + full) / 2,
                "A full backward pass costs 2 units, not 1.": (forward + to_input + full) / 3,
                "A backward pass to the input alone costs 1 unit, not 2.": (forward + 2 * to_input + 2 * full) / 3,
                "The backward passes to the input are missing.": (forward + 2 * full) / 3,
                "Only the last term is divided by 3: put the sum in brackets.": forward + to_input + 2 * full / 3,
            }
            advice = "Add up units: 1, 1 and 2 a pass; divide by the 3 of a plain step."
            raise _Wrong(f"{says} {known_fault(answer, faults, 0.003) or advice}")

    shown = table(["pass", "units"], [["forward", 1], ["to the input", 1], ["full backward", 2], ["a plain step", 3]])
    return grade(
        "plain_steps", student, test, "units = forward + to_input + 2 * full; a plain step has 1 + 2 of them.", shown
    )


# ---------------------------------------------------------------- lesson 05


def check_combined(student: Callable[..., nn.Module]) -> bool:
    """Grade ``combined(model, data, precision, mask_ratio, epochs, seed)``, which returns the trained quantized copy.

    Examples
    --------
    >>> from qsal_helpers import SaliencyGuided, fit
    >>> def combined(model, data, precision, mask_ratio, epochs, seed):
    ...     small = quantize(model, precision)
    ...     fit(small, data, SaliencyGuided(mask_ratio), epochs=epochs, seed=seed, progress=False)
    ...     return small
    >>> check_combined(combined)
    combined: correct.
    True
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (160, 1, 16, 16), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(160) % 10)  # two batches an epoch, so that even a first epoch tells epochs apart
    data = ImageData("noise", split, split, tuple("0123456789"), (0.5,), (0.3,))
    with seeded(0, torch.device("cpu")):
        start = build_model("lenet5", image_size=16)

    # The seed is no small number, because one slip makes it a batch size, and small batches take long.
    def trained(model: nn.Module, ratio: float, epochs: int = 3, seed: int = 20, batch_size: int = 128) -> nn.Module:
        fit(model, data, SaliencyGuided(ratio), epochs, batch_size, seed=seed, progress=False)
        return model

    def weights(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])

    def same(one: nn.Module, other: nn.Module) -> bool:
        return weights(one).shape == weights(other).shape and torch.allclose(weights(one), weights(other), atol=1e-6)

    def test() -> None:
        given = copy.deepcopy(start)
        answer = _given(student(given, data, "w4a2", 0.75, 3, 20))
        if not isinstance(answer, nn.Module):
            kind = type(answer).__name__
            raise _Wrong(f"Return the trained model; your function returned {kind}. (fit trains its model in place.)")
        bits = {module.weight_bits for module in answer.modules() if hasattr(module, "weight_bits")}
        if not bits:
            raise _Wrong("The model you return has no quantized layer: quantize returns a copy; train and return that.")
        precision = getattr(answer, "precision", None)
        if (getattr(precision, "weights", None), getattr(precision, "activations", None)) != (4, 2):
            raise _Wrong(f"Asked for w4a2, your model has {precision}: hand `precision` on to quantize.")
        if same(answer, trained(quantize(start, "w4a2"), 0.75)):
            return
        if same(answer, quantize(start, "w4a2")):
            raise _Wrong("The model you return was never trained: is it the quantized copy that you handed to fit?")
        faults = {
            "mask_ratio does not arrive: this is what SaliencyGuided() gives, whose ratio is 0.5.": (0.5, 3, 20),
            "it was trained without guidance: hand SaliencyGuided(mask_ratio) to fit.": (0, 3, 20),
            "epochs does not arrive in fit, which then takes its default.": (0.75, 8, 20),
            "seed does not arrive in fit, which then takes its default, 0.": (0.75, 3, 0),
            "neither epochs nor seed arrives in fit.": (0.75, 8, 0),
            "neither mask_ratio nor epochs arrives: hand them to SaliencyGuided and to fit.": (0.5, 8, 20),
            "neither mask_ratio nor seed arrives: hand them to SaliencyGuided and to fit.": (0.5, 3, 0),
            "nothing arrives of mask_ratio, epochs and seed.": (0.5, 8, 0),
            "seed arrived as fit's batch_size: name both, epochs=..., seed=....": (0.75, 3, 0, 20),
        }
        for sentence, options in faults.items():
            if same(answer, trained(quantize(start, "w4a2"), *options)):
                raise _Wrong(f"The bits are right, but {sentence}")
        if same(answer, quantize(trained(copy.deepcopy(start), 0.75), "w4a2")):
            raise _Wrong("You quantized after training. Quantize first, so that training can make up for the rounding.")
        raise _Wrong("The bits are right, but the weights are not those of the three lines.")

    hint = "small = quantize(model, precision); fit(small, data, SaliencyGuided(mask_ratio), epochs=..., seed=...)."
    return grade("combined", student, test, hint, times=3)  # the grader trains up to ten networks to compare with


def check_pareto_front(student: Callable[[Tensor], Tensor]) -> bool:
    """Grade ``my_pareto_front(scores)``: which rows of ``(N, K)`` no other row beats, bool ``(N,)``.

    Examples
    --------
    >>> def my_pareto_front(scores):
    ...     as_good = (scores[:, None] >= scores[None]).all(-1)
    ...     better = (scores[:, None] > scores[None]).any(-1)
    ...     return ~(as_good & better).any(0)
    >>> check_pareto_front(my_pareto_front)
    my_pareto_front: correct.
    True
    """
    cases = {
        "two columns": [[9.0, 1.0], [5.0, 5.0], [1.0, 9.0], [4.0, 4.0], [0.0, 5.0]],
        "a tie in one column": [[3.0, 1.0], [3.0, 2.0], [1.0, 2.0], [0.0, 7.0]],
        "two equal rows": [[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]],
        "three columns": [[1.0, 1.0, 9.0], [5.0, 5.0, 1.0], [4.0, 6.0, 0.0], [4.0, 4.0, 0.0]],
        "negative costs": [[-90.0, 0.9], [-40.0, 0.8], [-50.0, 0.7], [-90.0, 0.5]],
    }

    def test() -> None:
        for case, rows in cases.items():
            scores = torch.tensor(rows)
            beats = (scores[:, None] >= scores[None]).all(-1) & (scores[:, None] > scores[None]).any(-1)
            wanted = ~beats.any(0)
            answer = expect_tensor(student(scores.clone()), wanted, "the answer")
            if answer.dtype != torch.bool:
                raise _Wrong(f"The answer should be True or False for each row, dtype bool; it is {answer.dtype}.")
            if torch.equal(answer, wanted):
                continue
            shown = table(
                ["row", "scores", "yours", "should be"],
                list(zip(range(len(rows)), rows, answer.tolist(), wanted.tolist(), strict=True)),
            )
            with _showing(shown):
                says = f"For {case}:"
                largest = (scores == scores.amax(0)).any(1)
                as_good, above = scores[:, None] >= scores[None], scores[:, None] > scores[None]
                largest = (scores == scores.amax(0)).any(1)
                if torch.equal(answer, largest) and not answer[wanted].all():
                    raise _Wrong(
                        f"{says} You keep the best of each column, and lose the good compromises between them."
                    )
                faults = {
                    "That is the other way round: these are the rows that are beaten.": ~wanted,
                    "To beat a row, another must also be at least as good everywhere.": ~above.any(-1).any(0),
                    "You ask for better everywhere. Better in one column and equal in others beats.": (
                        ~above.all(-1).any(0)
                    ),
                    "These rows beat no other; those are asked for that no other row beats.": ~beats.any(1),
                    "Equal rows do not beat each other: what beats must also be better somewhere.": (
                        ~as_good.all(-1).fill_diagonal_(False).any(0)
                    ),
                    "Every row is as good as itself: what beats must also be better somewhere.": 0 * wanted,
                    f"Nothing is ever beaten; but {rows[int((~wanted).nonzero()[0])]} is.": torch.ones(len(rows)),
                }
                if fault := known_fault(answer, faults):
                    raise _Wrong(f"{says} {fault}")
                row = int((answer != wanted).nonzero()[0])
                if wanted[row]:
                    raise _Wrong(
                        f"{says} Row {row} should stay: no other row is as good everywhere and better somewhere."
                    )
                by = int(beats[:, row].nonzero()[0])
                raise _Wrong(f"{says} Row {row} should go: row {by} is as good everywhere and better somewhere.")

    hint = "scores[:, None] >= scores[None] compares every row with every other; then .all(-1), .any(-1), .any(0)."
    return grade("my_pareto_front", student, test, hint)


# ---------------------------------------------------------------- lesson 06


def check_half_width(student: Callable[[Tensor, float], float]) -> bool:
    """Grade ``half_width(values, t)``: t * s / sqrt(n), half the width of the mean's confidence interval.

    Examples
    --------
    >>> check_half_width(lambda values, t: t * values.std() / len(values) ** 0.5)
    half_width: correct.
    True
    """

    def test() -> None:
        for numbers, t in (([1.0, 2.0, 4.0], 4.3), ([0.9, 0.91, 0.93, 0.92, 0.9], 2.78), ([5.0, 9.0], 12.7)):
            values = torch.tensor(numbers, dtype=torch.float64)
            n, s = len(values), values.std().item()
            answer = expect_number(student(values.clone(), t), "The half width")
            says = f"For values {numbers} and t = {t}"
            faults = {
                "you divide by n; the mean of n values varies by s / sqrt(n).": t * s / n,
                "this is t * s, how far single values lie apart. The mean of n values varies less.": t * s,
                "this is s / sqrt(n): t is missing.": s / n**0.5,
                "this is the whole width; half of it is asked for.": 2 * t * s / n**0.5,
                "n stands under the root, not n - 1: std has taken care of that.": t * s / (n - 1) ** 0.5,
                "this takes the variance; s is its root, values.std().": t * s**2 / n**0.5,
                "the mean is added; only what stands behind the ± is asked for.": values.mean().item() + t * s / n**0.5,
                "use the sample's deviation, which divides by n - 1 (torch's std does).": t
                * values.std(correction=0).item()
                / n**0.5,
            }
            wanted = t * s / n**0.5
            if math.isclose(answer, wanted, rel_tol=1e-4):
                continue
            with _showing(table(["n", "s", "t", "yours", "should be"], [[n, s, t, answer, wanted]])):
                advice = f"it should be {wanted:.4f}; yours is {answer:.4f}."
                raise _Wrong(f"{says}, {known_fault(answer, faults) or advice}")

    return grade("half_width", student, test, "values.std() is s and len(values) is n; the formula stands above.")


def check_paired_t(student: Callable[[Tensor, Tensor], float]) -> bool:
    """Grade ``paired_t(a, b)``: the t statistic of the differences a - b, pair by pair.

    Examples
    --------
    >>> def paired_t(a, b):
    ...     d = a - b
    ...     return d.mean() / (d.std() / len(d) ** 0.5)
    >>> check_paired_t(paired_t)
    paired_t: correct.
    True
    """

    def test() -> None:
        for one, other in (([5.0, 7.0, 9.0], [4.0, 6.5, 7.0]), ([0.90, 0.93, 0.91, 0.95], [0.91, 0.95, 0.93, 0.94])):
            a, b = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
            d, n = a - b, len(a)
            wanted = (d.mean() / (d.std() / n**0.5)).item()
            answer = expect_number(student(a.clone(), b.clone()), "The statistic")
            says = f"For a = {one} and b = {other}"
            unpaired = ((a.mean() - b.mean()) / ((a.var() + b.var()) / n).sqrt()).item()
            faults = {
                "this is the t of two unrelated groups. Take the differences first; their spread counts.": unpaired,
                "the sign is lost; it tells which of the two is larger.": abs(wanted) if wanted < 0 else math.nan,
                "the sign is turned: a minus b is asked for.": -wanted,
                "you divide by sqrt(n), too: put d.std() / sqrt(n) in brackets.": wanted / n,
                "you divide s by n; the mean of n values varies by s / sqrt(n).": wanted * n**0.5,
                "n stands under the root, not n - 1: std has taken care of that.": wanted * ((n - 1) / n) ** 0.5,
                "this divides by the variance; s is its root, d.std().": wanted / d.std().item(),
                "you divide by the spread of single differences; the mean's is smaller by sqrt(n).": wanted / n**0.5,
                "this is the mean difference; divide it by its standard error.": d.mean().item(),
                "use the sample's deviation, which divides by n - 1 (torch's std does).": wanted * (n / (n - 1)) ** 0.5,
            }
            if math.isclose(answer, wanted, rel_tol=1e-4):
                continue
            shown = table(
                ["mean of a - b", "s", "n", "yours", "should be"],
                [[d.mean().item(), d.std().item(), n, answer, wanted]],
            )
            with _showing(shown):
                advice = f"it should be {wanted:.4f}; yours is {answer:.4f}."
                raise _Wrong(f"{says}, {known_fault(answer, faults) or advice}")

    return grade("paired_t", student, test, "d = a - b; then its mean, divided by d.std() / sqrt(n).")


def check_holm(student: Callable[[Tensor], Tensor]) -> bool:
    """Grade ``my_holm(p)``: Holm's corrected p-values, in the order they were given.

    Examples
    --------
    >>> from qsal_helpers.evidence import holm
    >>> check_holm(lambda p: torch.tensor(holm(p.tolist()), dtype=p.dtype))
    my_holm: correct.
    True
    """
    cases = ([0.5, 0.01, 0.04], [0.6, 0.7, 0.01], [0.03, 0.04, 0.02], [0.4, 0.3, 0.8, 0.001])

    def test() -> None:
        for numbers in cases:
            p = torch.tensor(numbers, dtype=torch.float64)
            wanted = torch.tensor(holm(numbers), dtype=torch.float64)
            answer = expect_tensor(student(p.clone()), wanted, "the answer").double()
            m, order = len(p), p.argsort(stable=True)
            factors = torch.arange(m, 0, -1, dtype=torch.float64)
            raw, unbounded, upward = torch.empty_like(p), torch.empty_like(p), torch.empty_like(p)
            raw[order] = (p[order] * factors).clamp(max=1)
            upward[order] = (p[order] * factors.flip(0)).cummax(0).values.clamp(max=1)
            unbounded[order] = (p[order] * factors).cummax(0).values
            faults = {
                "this is Bonferroni: every p is multiplied by how many there are. Holm multiplies the second "
                "smallest by one less, and so on.": (p * m).clamp(max=1),
                "a p-value ended up above 1; 1 is the most.": unbounded,
                "a larger p must not end up below a smaller one: take the running maximum.": raw,
                "the values are right, but they stand in sorted order, not in the order given.": wanted[order],
                "the values are put back the wrong way: answer[order] = values, not values[order].": wanted[order][
                    order
                ],
                "the smallest is multiplied by m and the largest by 1, not the other way round.": upward,
                "the smallest comes first: sort from the smallest up before you multiply.": (p * factors)
                .cummax(0)
                .values.clamp(max=1),
                "nothing was corrected.": p,
            }
            if torch.allclose(answer, wanted, atol=1e-6):
                continue
            rows = list(zip(numbers, answer.tolist(), wanted.tolist(), strict=True))
            with _showing(table(["p", "yours", "should be"], rows)):
                fault = known_fault(answer, faults, 1e-5) or "your values are not Holm's."
                raise _Wrong(f"For p = {numbers}: {fault}")

    hint = "sort; multiply by m, m - 1, ..., 1; cummax(0).values; clamp at 1; put back into the order given."
    return grade("my_holm", student, test, hint)


# ---------------------------------------------------------------- lesson 07


def check_accumulator_bits(student: Callable[[int, int, int], int]) -> bool:
    """Grade ``accumulator_bits(largest_weight, largest_input, terms)``: bits of the smallest safe signed accumulator.

    It holds every sum of `terms` products of an integer from -largest_weight to largest_weight with one from 0 to
    largest_input.

    Examples
    --------
    >>> check_accumulator_bits(lambda weight, largest_input, terms: (weight * largest_input * terms).bit_length() + 1)
    accumulator_bits: correct.
    True
    """

    def test() -> None:
        for weight, top, terms in ((3, 3, 216), (127, 255, 9), (4, 8, 64), (1, 1, 1), (15, 15, 1000)):
            largest = weight * top * terms
            wanted = largest.bit_length() + 1
            answer = expect_number(student(weight, top, terms), "The width")
            if answer == wanted:
                continue
            says = (
                f"For {terms} products of weights up to ±{weight} and inputs up to {top} your function says {answer:g}."
            )
            if answer != int(answer):
                raise _Wrong(f"{says} Bits come whole: round up.")
            if answer == largest:
                raise _Wrong(f"{says} That is the largest sum itself; how many bits does it take?")
            if answer == (weight * top).bit_length() + 1:
                raise _Wrong(f"{says} That is enough for one product; {terms} of them are added up.")
            if answer == weight.bit_length() + top.bit_length():
                raise _Wrong(f"{says} You added the bits of the two factors; what do the many terms of the sum add?")
            if answer == wanted - 1 and largest & (largest - 1):
                raise _Wrong(f"{says} Its largest sum, {largest:,}, fits, but the sign needs a bit of its own.")
            if answer < wanted:
                reach = 2 ** (int(answer) - 1) - 1 if answer >= 1 else 0
                raise _Wrong(f"{says} Such integers end at {reach:,}; the sum can reach {largest:,}.")
            raise _Wrong(f"{says} {wanted} bits are enough: they reach {2 ** (wanted - 1) - 1:,}.")

    hint = "the largest sum is M = weight * input * terms; b signed bits end at 2**(b - 1) - 1. Try b = 1, 2, 3, ..."
    shown = table(["bits", "largest number"], [[bits, f"{2 ** (bits - 1) - 1:,}"] for bits in (4, 8, 12, 16, 20)])
    return grade("accumulator_bits", student, test, hint, shown)


def check_fold_batch_norm(
    student: Callable[[Tensor, Tensor, nn.BatchNorm2d], tuple[Tensor, Tensor]],
) -> bool:
    """Grade ``fold_batch_norm(weight, bias, bn)``: weight and bias of the one convolution that does the work of both.

    `weight` has shape ``(O, C, kh, kw)``, `bias` has shape ``(O,)``; `bn` is an ``nn.BatchNorm2d`` in evaluation mode.

    Examples
    --------
    >>> def fold_batch_norm(weight, bias, bn):
    ...     gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    ...     return weight * gain.view(-1, 1, 1, 1), gain * (bias - bn.running_mean) + bn.bias
    >>> check_fold_batch_norm(fold_batch_norm)
    fold_batch_norm: correct.
    True
    """

    def test() -> None:
        with torch.no_grad():
            weight, bias, bn = _convolution_and_batch_norm()
            given = copy.deepcopy(bn)
            answer = _given(student(weight.clone(), bias.clone(), given))
            if not isinstance(answer, tuple | list) or len(answer) != 2:
                raise _Wrong("Return two tensors, the new weight and the new bias: return new_weight, new_bias.")
            new_weight = expect_tensor(answer[0], weight, "the new weight")
            new_bias = expect_tensor(answer[1], bias, "the new bias")
            if any(not torch.equal(v, bn.state_dict()[name]) for name, v in given.state_dict().items()):
                raise _Wrong("Your function changes `bn` itself, which the network still needs.")
            deviation, gamma, beta, mean = (bn.running_var + bn.eps).sqrt(), bn.weight, bn.bias, bn.running_mean
            gain = gamma / deviation
            column = (-1, 1, 1, 1)
            _name_the_fault(
                "The new weight has the right shape, but",
                new_weight,
                weight * gain.view(column),
                {
                    "it is the old one: every filter has to be multiplied by its gain.": weight,
                    "you divided by the variance; divide by its square root.": weight
                    * (gamma / (bn.running_var + bn.eps)).view(column),
                    "gamma is missing: multiply by bn.weight, too.": weight / deviation.view(column),
                    "you multiplied by the deviation; divide by it.": weight * (gamma * deviation).view(column),
                    "bn.eps stands behind the root; it belongs under it.": weight
                    * (gamma / (bn.running_var.sqrt() + bn.eps)).view(column),
                    "bn.eps is missing under the root.": weight * (gamma / bn.running_var.sqrt()).view(column),
                    "the gain runs over the wrong axis: filters lie along axis 0, so use .view(-1, 1, 1, 1).": weight
                    * gain.view(1, -1, 1, 1),
                },
                tolerance=1e-5,
            )
            expect_close(new_weight, weight * gain.view(column), at=weight, what="the new weight")
            _name_the_fault(
                "The weight is right. The new bias has the right shape, but",
                new_bias,
                gain * (bias - mean) + beta,
                {
                    "it is the old one.": bias,
                    "beta (bn.bias) is missing.": gain * (bias - mean),
                    "the running mean is missing.": gain * bias + beta,
                    "the convolution's own bias is missing.": beta - gain * mean,
                    "the convolution's own bias has to be multiplied by the gain, too.": bias - gain * mean + beta,
                    "the running mean has to be multiplied by the gain, too.": gain * bias - mean + beta,
                    "the gain is missing: it multiplies (bias - bn.running_mean).": bias - mean + beta,
                    "beta (bn.bias) is multiplied by the gain; add it last.": gain * (bias - mean + beta),
                    "beta (bn.bias) is subtracted; it has to be added.": gain * (bias - mean) - beta,
                    "the bias comes first: (bias - bn.running_mean).": gain * (mean - bias) + beta,
                    "the running mean is added; it has to be subtracted.": gain * (bias + mean) + beta,
                },
                tolerance=1e-5,
            )
            expect_close(new_bias, gain * (bias - mean) + beta, at=torch.arange(5.0), what="the new bias")

    hint = (
        "gain = bn.weight / torch.sqrt(bn.running_var + bn.eps), one a filter; gain.view(-1, 1, 1, 1) multiplies each "
        "filter by its own; the bias goes through the batch-norm: gain * (bias - bn.running_mean) + bn.bias."
    )
    return grade("fold_batch_norm", student, test, hint)


def _convolution_and_batch_norm() -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(0)
    # As many channels as filters, so that a gain along the wrong axis is not stopped by its shape.
    weight, bias = torch.randn(5, 5, 3, 3, generator=generator), torch.randn(5, generator=generator)
    bn = nn.BatchNorm2d(5, eps=0.1).eval()
    for values in (bn.weight, bn.bias, bn.running_mean):
        values.data.normal_(generator=generator)
    bn.running_var.uniform_(0.2, 2, generator=generator)
    return weight, bias, bn


def check_pack_four(student: Callable[[Tensor], Tensor]) -> bool:
    """Grade ``pack_four(codes)``: four numbers from -2 to 1 a byte, the first of each four in the lowest bits.

    `codes` is int8, ``(4 * N,)``; the answer is uint8, ``(N,)``.

    Examples
    --------
    >>> def pack_four(codes):
    ...     fields = (codes & 3).view(-1, 4).int()
    ...     return (fields[:, 0] | fields[:, 1] << 2 | fields[:, 2] << 4 | fields[:, 3] << 6).to(torch.uint8)
    >>> check_pack_four(pack_four)
    pack_four: correct.
    True
    """
    codes = torch.tensor([1, -2, 0, -1, 0, 1, 1, 0, -2, -2, -2, -2, -1, -1, 0, 0], dtype=torch.int8)

    def packed(fields: Tensor, shifts: list[int]) -> Tensor:
        return (fields.view(-1, 4).int() << torch.tensor(shifts)).sum(1)

    def test() -> None:
        up = [0, 2, 4, 6]
        wanted = packed(codes & 3, up)
        answer = student(codes.clone())
        if isinstance(answer, Tensor) and answer.numel() == codes.numel():
            raise _Wrong(f"There are as many numbers as before, {len(codes)}; four of them share one byte.")
        answer = expect_tensor(answer, wanted, "the packed bytes")
        if answer.is_floating_point() or answer.is_complex():
            raise _Wrong(f"The bytes should be integers, torch.uint8; they are {answer.dtype}.")
        parts = (codes.view(-1, 4).int() << torch.tensor(up)).unbind(1)
        or_ed = parts[0] | parts[1] | parts[2] | parts[3]
        masked_late = (codes.view(-1, 4).int() & torch.tensor([3, 12, 48, 192])).sum(1)
        a, b, c, d = (codes & 3).view(-1, 4).int().unbind(1)
        added_first = a + b << 2 + c << 4 + d << 6
        if answer.dtype == torch.int8 and torch.equal(answer.int() & 255, wanted):
            raise _Wrong("The bits are right, but int8 reads them as numbers down to -128: use .to(torch.uint8).")
        faults = {
            "the first number is in the highest bits; it belongs in the lowest.": packed(codes & 3, up[::-1]),
            "negative numbers spill over their neighbours: keep the two lowest bits of each with & 3.": packed(
                codes, up
            ),
            "a negative number fills the bits of its neighbours: keep the two lowest bits of each with & 3.": or_ed,
            "the four numbers of a byte are not neighbours: view(-1, 4) has four neighbours in a row.": packed(
                (codes & 3).view(4, -1).T.reshape(-1), up
            ),
            "each number was raised by 2; two's complement keeps the two lowest bits instead: & 3.": packed(
                codes + 2, up
            ),
            "the numbers overlap: each needs 2 bits, so shift by 0, 2, 4 and 6.": packed(codes & 3, [0, 1, 2, 3]),
            "codes & 3 << 2 means codes & (3 << 2): put codes & 3 in brackets before you shift.": masked_late,
            "+ comes before << in Python: put each shifted number in brackets.": added_first,
            "the first number is moved, too: shift by 0, 2, 4 and 6.": packed(codes & 3, [2, 4, 6, 8]),
            "the minus signs are lost: -1 must not become the same bits as 1.": packed(codes.abs(), up),
        }
        fours = codes.view(-1, 4).tolist()
        rows = [
            [four, f"{int(mine) & 255:08b}", f"{int(w):08b}"]
            for four, mine, w in zip(fours, answer, wanted, strict=True)
        ]
        with _showing(table(["numbers", "yours", "should be"], rows)):
            if fault := known_fault(answer.int() & 255, {what: wrong & 255 for what, wrong in faults.items()}):
                raise _Wrong(f"There is one number a byte, but {fault}")
            for four, mine, right in zip(fours, answer.tolist(), wanted.tolist(), strict=True):
                if mine != right:
                    raise _Wrong(f"{four} should become {right:08b} ({right}); your byte is {mine}.")
        if answer.dtype != torch.uint8:
            raise _Wrong(f"The numbers are right, but of type {answer.dtype}, more than a byte each: use torch.uint8.")

    hint = "codes & 3 gives the two lowest bits; << 2 moves them two places up; | or + puts the four parts together."
    return grade("pack_four", student, test, hint)


if __name__ == "__main__":
    from qsal_helpers.grading import main

    main()


# ---------------------------------------------------------------- lesson 08


def check_of_the_room(student: Callable[[str, float, float], float]) -> bool:
    """Grade ``of_the_room(kind, area, chance)``: a map's gain over the random map, as a share of the largest possible.

    `kind` is "deletion" or "insertion", `area` lies under the map's curve and `chance` under the random map's.

    Examples
    --------
    >>> def of_the_room(kind, area, chance):
    ...     return (chance - area) / chance if kind == "deletion" else (area - chance) / (1 - chance)
    >>> check_of_the_room(of_the_room)
    of_the_room: correct.
    True
    """

    def test() -> None:
        cases = (("deletion", 0.15, 0.2), ("insertion", 0.3, 0.1), ("deletion", 0.5, 0.4), ("insertion", 0.6, 0.7))
        for kind, area, chance in cases:
            gain, room = (chance - area, chance) if kind == "deletion" else (area - chance, 1 - chance)
            wanted, best = gain / room, "0" if kind == "deletion" else "1"
            answer = expect_number(student(kind, area, chance), "The share")
            faults = {
                f"the sign is turned: by {kind} a map is good whose area is "
                f"{'smaller' if kind == 'deletion' else 'larger'} than the random map's.": -wanted,
                "this is the gain; divide it by the room there is for one.": gain,
                f"the room is wrong: the best area by {kind} is {best}. How far is the random map from that?": gain
                / (1 - room),
                "you divide by the map's own area. The room is what lies between the random map and the best.": gain
                / area,
            }
            if math.isclose(answer, wanted, rel_tol=1e-4):
                continue
            with _showing(
                table(["kind", "area", "chance", "yours", "should be"], [[kind, area, chance, answer, wanted]])
            ):
                advice = f"it should be {wanted:.4f}; yours is {answer:.4f}."
                raise _Wrong(f"For {kind}, area {area} and chance {chance}, {known_fault(answer, faults) or advice}")

    hint = "what a perfect map gains: its area would be 0 by deletion and 1 by insertion."
    return grade("of_the_room", student, test, hint)


def check_pseudo_values(student: Callable[[float, Tensor], Tensor]) -> bool:
    """Grade ``my_pseudo_values(whole, without)``: the jackknife's, of a number and of n with one seed left out each.

    Examples
    --------
    >>> check_pseudo_values(lambda whole, without: len(without) * whole - (len(without) - 1) * without)
    my_pseudo_values: correct.
    True
    """

    def test() -> None:
        for whole, numbers in ((2.0, [2.5, 1.5, 2.0]), (0.30, [0.28, 0.33, 0.29, 0.31, 0.30])):
            without = torch.tensor(numbers, dtype=torch.float64)
            n, wanted = len(numbers), torch.tensor(pseudo_values(whole, numbers), dtype=torch.float64)
            answer = expect_tensor(student(whole, without.clone()), wanted, "the answer").double()
            faults = {
                "the two factors are exchanged: n belongs to the number from all seeds.": n * without - (n - 1) * whole,
                "n - 1 seeds are left where one is left out: that is the second factor.": n * (whole - without),
                "the second factor is missing.": n * whole - without,
                "this is how far the number moves; n times the one minus n - 1 times the other is asked for.": whole
                - without,
                "the signs are turned.": -wanted,
                "both factors are one too small.": (n - 1) * whole - (n - 2) * without,
                "nothing was done with the numbers that were left out.": without,
            }
            if torch.allclose(answer, wanted, rtol=1e-4):
                continue
            rows = list(zip(numbers, answer.tolist(), wanted.tolist(), strict=True))
            with _showing(table(["without this seed", "yours", "should be"], rows)):
                fault = known_fault(answer, faults, 1e-5) or "your values are not the pseudo-values."
                raise _Wrong(f"For {whole} from all seeds, {fault}")

    return grade("my_pseudo_values", student, test, "len(without) is n; the formula stands above.")
