"""Graders for the exercises: each says in words what is wrong, and shows it.

A check never raises, whatever the student's function does: it returns True when the exercise is solved and False
otherwise, and prints one paragraph. A stub that was left alone (it returns None or ``...``) is "not done yet".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TIME_LIMIT = 10.0  # seconds


class _Wrong(Exception):
    """What is wrong with an answer, as a sentence for the student."""


class _NotDone(Exception):
    """The stub was left alone."""


def grade(exercise: str, test: Callable[[], None], hint: str) -> bool:
    """Run `test`, which raises `_Wrong` or `_NotDone`, and tell the student the outcome.

    Examples
    --------
    >>> grade("add", lambda: None, hint="try +")
    add: correct.
    True
    """
    try:
        _within_time(test)
    except _NotDone:
        print(f"{exercise}: not done yet. The lesson goes on with the package's version.")
        return False
    except _Wrong as wrong:
        print(f"{exercise}: not right yet. {wrong}\nHint: {hint}")
        return False
    except Exception as error:
        print(f"{exercise}: your function stopped with {type(error).__name__}: {error}\nHint: {hint}")
        return False
    print(f"{exercise}: correct.")
    return True


def _within_time(test: Callable[[], None]) -> None:
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            test()
        except BaseException as error:
            outcome.append(error)

    # A daemon thread: an endless loop in a student's answer must not keep the kernel from going on.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    if thread.is_alive():
        raise _Wrong(f"It did not finish within {TIME_LIMIT:.0f} seconds: is there a loop that never ends?")
    if outcome:
        error = outcome[0]
        raise error if isinstance(error, Exception) else _Wrong(f"It stopped with {type(error).__name__}.")


def expect_tensor(answer: Any, like: Tensor, what: str) -> Tensor:
    """Return `answer` if it is a tensor of the shape of `like`; raise what is wrong with it otherwise.

    Examples
    --------
    >>> expect_tensor(torch.ones(2), like=torch.zeros(2), what="the sum").tolist()
    [1.0, 1.0]
    """
    if answer is None or answer is Ellipsis:
        raise _NotDone
    if not isinstance(answer, Tensor):
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
        raise _Wrong(f"{what} differs at {int(wrong.sum())} of {wrong.numel()} points:\n" + "\n".join(lines))
