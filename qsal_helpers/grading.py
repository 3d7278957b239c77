"""Grade students' notebooks: ``python -m qsal_helpers.checks notebook.ipynb [more.ipynb ...]``.

A notebook is read as text. Of each exercise only the statements are kept that its function needs: its definition, and
whatever that uses. They run in another process, with its own time limit, an empty working folder and no way to print
into the table; the same graders as in the lesson judge the function. Nothing else of the notebook is ever executed,
so a notebook takes seconds.

The other process is not a sandbox: it may read and write files, as the notebook itself may. It keeps accidents apart
(endless loops, exits, floods of text), not a student who sets out to break in. Grade strangers in a container.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import json
import linecache
import os
import re
import signal
import subprocess
import symtable
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from IPython.core.inputtransformer2 import TransformerManager
from tqdm.auto import tqdm

from .checks import Outcome

# lesson -> the function that a student writes -> its grader in `checks`
EXERCISES = {
    "00": {"number_of_levels": "check_number_of_levels", "agreement": "check_agreement"},
    "01": {
        "my_quantize": "check_quantizer",
        "best_clip": "check_best_clip",
        "my_round": "check_round_ste",
        "bits_needed": "check_bits_needed",
    },
    "02": {
        "my_pact": "check_pact",
        "alpha_gradient": "check_alpha_gradient",
        "steps_to_shrink": "check_steps_to_shrink",
    },
    "03": {
        "gradient_map": "check_gradient_map",
        "my_integrated_gradients": "check_integrated_gradients",
        "foreground_share": "check_foreground_share",
    },
    "04": {
        "divergence": "check_divergence",
        "hide_pixels": "check_hide_pixels",
        "guided_loss": "check_guided_loss",
        "plain_steps": "check_plain_steps",
    },
    "05": {"combined": "check_combined", "my_pareto_front": "check_pareto_front"},
    "06": {"half_width": "check_half_width", "paired_t": "check_paired_t", "my_holm": "check_holm"},
    "07": {
        "accumulator_bits": "check_accumulator_bits",
        "fold_batch_norm": "check_fold_batch_norm",
        "pack_four": "check_pack_four",
    },
    "08": {"of_the_room": "check_of_the_room", "my_pseudo_values": "check_pseudo_values"},
}
GRADERS = {function: grader for lesson in EXERCISES.values() for function, grader in lesson.items()}
STATES = ("done", "not yet", "wrong", "error")
START_LIMIT, EXERCISE_LIMIT = 60.0, 45.0  # seconds; a grader itself gives up on a function after 30 at most
LONGEST_MESSAGE = 2000
_FILLING = {"append", "extend", "insert", "add", "update", "setdefault"}  # methods that change what a name holds
STILL_RUNNING = 75  # the exit code of a process that ends because a judged function would not


class NotALesson(ValueError):
    """The file cannot be graded; says why."""


class Statement(NamedTuple):
    """One top-level statement of a notebook: its text, the names it binds, and the names it needs."""

    text: str
    binds: frozenset[str]
    needs: frozenset[str]


def grade_notebook(path: str | Path) -> tuple[str, list[Outcome]]:
    """Return the lesson's number and what became of each of its exercises.

    Raises
    ------
    NotALesson
        The file is not a notebook, or holds no exercise of the course.

    Examples
    --------
    >>> import json, tempfile
    >>> cell = {"cell_type": "code", "source": "checks.check_number_of_levels(number_of_levels)"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "anna.ipynb"
    ...     _ = path.write_text(json.dumps({"cells": [cell]}))
    ...     lesson, outcomes = grade_notebook(path)
    >>> lesson, [(outcome.exercise, outcome.state) for outcome in outcomes]
    ('00', [('number_of_levels', 'not yet'), ('agreement', 'not yet')])
    """
    cells = read_cells(path)
    lesson = lesson_of(cells)
    known, broken = statements_of([text for kind, text in cells if kind == "code"])
    outcomes, todo = {}, []
    for function in EXERCISES[lesson]:
        if any(function in statement.binds for statement in known):
            todo.append((function, "\n".join(statement.text for statement in needed(known, function))))
        elif fault := next((fault for text, fault in broken if re.search(rf"\b{function}\b", text)), None):
            outcomes[function] = Outcome(function, "error", fault)
        else:
            outcomes[function] = Outcome(function, "not yet", "Its cell is missing.")
    while todo:
        judged = judge_apart(todo)
        outcomes |= {outcome.exercise: outcome for outcome in judged}
        todo = todo[len(judged) :]
    return lesson, [outcomes[function] for function in EXERCISES[lesson]]


def read_cells(path: str | Path) -> list[tuple[str, str]]:
    """Return a notebook's cells as (kind, text), without running anything."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if "worksheets" in notebook:
            raise NotALesson("This notebook has the format of before 2015: open it in Jupyter and save it.")
        cells = notebook["cells"]
        return [(str(cell["cell_type"]), "".join(cell["source"])) for cell in cells]
    except NotALesson:
        raise
    except OSError as error:
        raise NotALesson(f"The file cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotALesson("This is not a Jupyter notebook.") from None


def lesson_of(cells: Sequence[tuple[str, str]]) -> str:
    """Return the number of the lesson that a notebook is: that of the checks and exercises in it, else of its title."""
    titles = re.findall(r"^# (\d\d) ", "\n".join(text for kind, text in cells if kind == "markdown"), re.MULTILINE)
    names = set(re.findall(r"\bcheck_\w+|(?<=^def )\w+", "\n".join(t for k, t in cells if k == "code"), re.MULTILINE))
    held = {lesson: len(names & {*graders, *graders.values()}) for lesson, graders in EXERCISES.items()}
    found = [title for title in titles if title in EXERCISES]
    if not found and not any(held.values()):
        raise NotALesson("This notebook holds no exercise of the course.")
    return max(held, key=held.__getitem__) if any(held.values()) else found[0]


def statements_of(sources: Sequence[str]) -> tuple[list[Statement], list[tuple[str, str]]]:
    """Return the statements of all cells that Python can read, and the other cells, each with what is wrong with it."""
    known, broken = [], []
    for source in sources:
        try:
            for node in ast.parse(_as_python(source)).body:
                text = ast.unparse(node)
                scope = symtable.symtable(text, "cell", "exec")
                binds = {name.get_name() for name in scope.get_symbols() if name.is_assigned() or name.is_imported()}
                binds |= set(_filled(node))
                if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                    binds = {"*"}
                known.append(Statement(text, frozenset(binds), frozenset(_needs(scope))))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            broken.append((source, f"{type(error).__name__}: {error}"))
    return known, broken


def _as_python(source: str) -> str:
    """Return a cell without what only Jupyter understands: ``%%time``, ``%matplotlib inline``, ``!ls``, ``f?``."""
    source = re.sub(r"\A\s*%%.*", "", source)
    try:
        return TransformerManager().transform_cell(source)
    except SyntaxError:
        return source


def _filled(node: ast.stmt) -> Iterator[str]:
    """Yield the names whose contents a statement changes: ``table[2] = 4``, ``levels.append(4)``."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return
    for part in ast.walk(node):
        if isinstance(part, (ast.Subscript, ast.Attribute)) and isinstance(part.ctx, ast.Store):
            part = part.value
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in _FILLING:
            part = part.func.value
        else:
            continue
        while isinstance(part, (ast.Subscript, ast.Attribute)):
            part = part.value
        if isinstance(part, ast.Name):
            yield part.id


def _needs(scope: symtable.SymbolTable) -> Iterator[str]:
    top = scope.get_type() == "module"
    yield from (
        s.get_name()
        for s in scope.get_symbols()
        if s.is_declared_global() or (s.is_referenced() and (top or s.is_global()))
    )
    for inner in scope.get_children():
        yield from _needs(inner)


def needed(known: Sequence[Statement], function: str) -> list[Statement]:
    """Return the statements that define `function` and all that these need, in the notebook's order.

    Examples
    --------
    >>> known, _ = statements_of(["import os\\nimport math", "a = 2\\nb = fit()\\nf = lambda x: math.sqrt(a * x)"])
    >>> [statement.text for statement in needed(known, "f")]
    ['import math', 'a = 2', 'f = lambda x: math.sqrt(a * x)']
    """
    names, chosen = {function, "*"}, set()
    while more := {i for i, statement in enumerate(known) if i not in chosen and statement.binds & names}:
        chosen |= more
        names = names.union(*(known[i].needs for i in more))
    return [known[i] for i in sorted(chosen)]


def judge_apart(todo: Sequence[tuple[str, str]]) -> list[Outcome]:
    """Judge exercises, each a function's name and the code that defines it, in a process of their own.

    The answer ends early with an exercise that ended the process or never ended; those after it are still to be done.
    """
    paths = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "QSAL_SCALE": "smoke", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", "from qsal_helpers.grading import judge_here; judge_here()"]
    fate = "Its code ended the process."
    # Files and not pipes: a program that the student's code leaves behind could keep a pipe open for ever.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as said,
    ):
        asked.write(json.dumps(todo).encode())
        asked.seek(0)
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=said,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(START_LIMIT + EXERCISE_LIMIT * len(todo))
        except subprocess.TimeoutExpired:
            fate = "Its code did not come to an end in time."
        finally:
            end_with_children(process)
        said.seek(0)
        judged = _read_outcomes(said.read(1_000_000), [function for function, _ in todo])
    if len(judged) < len(todo) and not (judged and process.returncode == STILL_RUNNING):
        judged.append(Outcome(todo[len(judged)][0], "error", fate))
    return judged


def _read_outcomes(said: bytes, functions: Sequence[str]) -> list[Outcome]:
    """Return the outcomes that a process wrote, up to the first line that is not one in its turn."""
    outcomes = []
    for function, line in zip(functions, said.decode(errors="replace").splitlines(), strict=False):
        try:
            exercise, state, message = json.loads(line)
        except (ValueError, TypeError):
            break
        if exercise != function or state not in STATES:
            break
        outcomes.append(Outcome(function, state, str(message)))
    return outcomes


def _run_named(code: str, name: str, namespace: dict[str, Any]) -> None:
    linecache.cache[name] = len(code), None, code.splitlines(True), name  # where an error finds the text of its lines
    exec(compile(code, name, "exec"), namespace)


def judge_here() -> None:
    """Read exercises from standard input, run and judge them in this process, write an outcome a line, and end it."""
    from . import checks

    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what students print goes nowhere
    for function, code in json.load(sys.stdin):
        namespace: dict[str, Any] = {"__name__": "__main__"}
        load = functools.partial(_run_named, code, function, namespace)
        # A student's code runs under the grader's time limit from its first line, imports and all.
        if checks.grade(function, None, load, hint=""):
            getattr(checks, GRADERS[function])(namespace.get(function))
        outcome = checks.OUTCOMES[-1]
        channel.write(json.dumps([function, outcome.state, outcome.message[:LONGEST_MESSAGE]]) + "\n")
        channel.flush()
        if checks.still_running():
            os._exit(STILL_RUNNING)
    os._exit(0)  # at once, whatever threads the students' code has left behind


def end_with_children(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Run the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        # A console of Windows, or a file it is redirected to, may lack a character that a student has used.
        sys.stdout.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="python -m qsal_helpers.checks", description="Grade students' notebooks.")
    parser.add_argument("notebooks", nargs="+", metavar="notebook.ipynb")
    rows, unread = [("notebook", "lesson", "exercise", "outcome", "")], 0
    for path in tqdm(parser.parse_args().notebooks, "notebooks", leave=False):
        try:
            lesson, outcomes = grade_notebook(path)
        except NotALesson as error:
            rows.append((path, "", "", "not graded", str(error)))
            unread += 1
            continue
        done = sum(outcome.state == "done" for outcome in outcomes)
        rows += [(path, lesson, outcome.exercise, outcome.state, _one_line(outcome.message)) for outcome in outcomes]
        rows.append((path, lesson, "", f"{done} of {len(outcomes)} done", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    sys.exit(1 if unread else 0)


def _one_line(message: str) -> str:
    """Return a message's first line without the control characters by which a student could rewrite the table."""
    return "".join(c for c in message.split("\n")[0] if c.isprintable())
