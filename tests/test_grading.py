"""A teacher's table says of each exercise what became of it, whatever stands in the notebook."""

import io
import json
import re
import subprocess
import sys
import textwrap
import time

import nbformat
import pytest
from lessons import lessons, read_source
from shared import solutions

from qsal_helpers import checks, grading
from qsal_helpers.grading import EXERCISES, NotALesson, grade_notebook, needed, statements_of

STUB = re.compile(r"^def (\w+)\(.*: \.\.\.$", re.MULTILINE)


def lesson(number):
    (source,) = lessons(number)
    return read_source(source)


def answered(number, **answers):
    """Return a lesson in which some functions are written: all of them as in the solutions, if none are named."""
    notebook = lesson(number)
    answers = answers or solutions(notebook)
    for cell in notebook.cells:
        name = STUB.search(cell.source) if cell.cell_type == "code" else None
        if name and name[1] in answers:
            cell.source = cell.source.replace(name[0], answers[name[1]])
    return notebook


def save(notebook, folder, name="anna.ipynb"):
    path = folder / name
    nbformat.write(notebook, path)
    return path


def states(notebook, folder):
    return {outcome.exercise: outcome.state for outcome in grade_notebook(save(notebook, folder))[1]}


def test_the_table_of_exercises_is_the_one_of_the_lessons():
    found = {}
    for source in lessons():
        code = "\n".join(cell.source for cell in read_source(source).cells if cell.cell_type == "code")
        if calls := re.findall(r"checks\.(check_\w+)\((\w+)\)", code):
            found[source.stem[:2]] = {function: grader for grader, function in calls}
    assert {number: dict(sorted(row.items())) for number, row in EXERCISES.items()} == {
        number: dict(sorted(row.items())) for number, row in found.items()
    }


@pytest.mark.parametrize("number", EXERCISES)
def test_a_solved_notebook_is_done(number, tmp_path):
    assert states(answered(number), tmp_path) == dict.fromkeys(EXERCISES[number], "done")


@pytest.mark.parametrize("number", EXERCISES)
def test_only_what_a_solution_needs_is_ever_run(number):
    cells = [cell.source for cell in answered(number).cells if cell.cell_type == "code"]
    known, broken = statements_of(cells)
    assert not broken
    for function in EXERCISES[number]:
        kinds = [statement.text.split()[0] for statement in needed(known, function)]
        assert set(kinds) <= {"import", "from", "def"} and kinds.count("def") == 1


def test_an_untouched_notebook_is_not_yet_done_and_a_deleted_cell_is_named(tmp_path):
    notebook = lesson("02")
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("def my_pact(")]
    _, outcomes = grade_notebook(save(notebook, tmp_path))
    assert {outcome.state for outcome in outcomes} == {"not yet"}
    assert [outcome.message for outcome in outcomes] == ["Its cell is missing.", "", ""]


def test_each_exercise_has_its_own_outcome_with_the_words_that_the_student_reads(tmp_path):
    notebook = answered(
        "02",
        my_pact="def my_pact(x, alpha, bits):\n    return x.clamp(0, alpha)",
        alpha_gradient="def alpha_gradient(x, alpha, grad):\n    return grad.nonsense",
        steps_to_shrink="def steps_to_shrink(start, end, lr, weight_decay)\n    return 1",
    )
    _, (wrong, error, syntax) = grade_notebook(save(notebook, tmp_path))
    assert (wrong.state, error.state, syntax.state) == ("wrong", "error", "error")
    assert "clipped, but not rounded" in wrong.message
    assert "AttributeError" in error.message and "SyntaxError" in syntax.message


MISBEHAVES = {
    "01": {
        "my_quantize": ("wrong", "def my_quantize(*_):\n    while True:\n        pass"),
        "best_clip": ("error", "import os\ndef best_clip(*_):\n    os._exit(0)"),
        "my_round": ("wrong", "def my_round(*_):\n    for _ in range(10**5):\n        print('done' * 100)"),
    },
    "04": {
        "divergence": ("wrong", "import sys\ndef divergence(*_):\n    sys.exit(0)"),
        "hide_pixels": ("wrong", 'def hide_pixels(*_):\n    print(\'["hide_pixels", "done", ""]\', flush=True)'),
        "guided_loss": ("error", "class E(Exception):\n    __str__ = None\ndef guided_loss(*_):\n    raise E"),
    },
}


@pytest.mark.parametrize("number", MISBEHAVES)
def test_no_exercise_keeps_the_others_from_being_graded(number, tmp_path):
    """An endless loop, an exit, a flood of output; sys.exit, an imitated result, an error that cannot be printed."""
    answers = {name: code for name, (_, code) in MISBEHAVES[number].items()}
    wanted = {name: state for name, (state, _) in MISBEHAVES[number].items()}
    last = list(EXERCISES[number])[-1]
    notebook = answered(number, **(solutions(lesson(number)) | answers))
    assert states(notebook, tmp_path) == wanted | {last: "done"}


def test_code_that_holds_the_whole_process_up_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "EXERCISE_LIMIT", 0.0)
    sign = tmp_path / "alive"
    child = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(sign)!r}).write_text(str(time.time())); time.sleep(0.05)"
    )
    code = f"import pathlib, re, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    # A search that takes ages inside one call of C, which no thread can interrupt.
    code += textwrap.dedent(f"""
        def my_pact(*_):
            while not pathlib.Path({str(sign)!r}).exists():
                time.sleep(0.01)
            return re.match('(a+)+b', 'a' * 60)
    """)
    for seconds in (8.0, 30.0, 120.0):  # a busy machine may need more until the child is there to be ended
        monkeypatch.setattr(grading, "START_LIMIT", seconds)
        (outcome,) = grading.judge_apart([("my_pact", code)])
        assert outcome.state == "error" and "come to an end" in outcome.message
        if sign.exists():
            break
    before = sign.read_text()
    time.sleep(0.5)
    assert sign.read_text() == before


def test_a_helper_and_a_constant_of_another_cell_are_found(tmp_path):
    code = "def bits_needed(decibels):\n    return smallest(lambda b: 20 * math.log10(2**b - 1) >= decibels)"
    notebook = answered("01", bits_needed=code)
    extra = "%matplotlib inline\nimport math\nFIRST = 1\n"
    extra += "def smallest(enough): return next(b for b in range(FIRST, 99) if enough(b))"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(extra))
    assert states(notebook, tmp_path)["bits_needed"] == "done"


def test_what_other_statements_put_into_a_list_or_a_table_is_there_when_a_function_is_graded(tmp_path):
    code = "def number_of_levels(bits):\n    return levels[bits] * table['one']"
    notebook = answered("00", number_of_levels=code)
    extra = "levels, table = [], {}\nfor b in range(9):\n    levels.append(2**b)\ntable['one'] = 1"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(extra))
    assert states(notebook, tmp_path)["number_of_levels"] == "done"


JUPYTER_ONLY = {
    "a question": "my_pact?",
    "a command's output": "files = !ls",
    "an indented magic": "if True:\n    %timeit 1",
    "a line that starts with %": "seven = (107\n% 10)",
    "a text that starts with !": 'text = """\n!ls\n"""',
}


@pytest.mark.parametrize("line", JUPYTER_ONLY)
def test_what_only_jupyter_understands_costs_nobody_an_exercise(line, tmp_path):
    notebook = answered("02")
    for cell in notebook.cells:
        if cell.source.startswith("def my_pact("):
            cell.source += "\n" + JUPYTER_ONLY[line]
    assert states(notebook, tmp_path)["my_pact"] == "done"


def test_a_function_that_counts_its_calls_in_a_global_name_is_graded(tmp_path):
    code = "CALLS = 0\ndef number_of_levels(bits):\n    global CALLS\n    CALLS += 1\n    return 2**bits"
    assert states(answered("00", number_of_levels=code), tmp_path)["number_of_levels"] == "done"


def test_a_notebook_is_the_lesson_whose_exercises_it_holds_whatever_its_headings_say(tmp_path):
    notebook = answered("04")
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# 01 Anna's homework"))
    assert states(notebook, tmp_path) == dict.fromkeys(EXERCISES["04"], "done")
    only = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in solutions(lesson("00")).values()]
    )
    assert set(states(only, tmp_path)) == set(EXERCISES["00"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no JSON", "not a Jupyter notebook"),
        ("[1, 2]", "not a Jupyter notebook"),
        ('{"cells": [{"source": 3}]}', "not a Jupyter notebook"),
        ('{"cells": []}', "no exercise"),
        ('{"nbformat": 3, "worksheets": [{"cells": []}]}', "before 2015"),
        (None, "cannot be read"),
    ],
)
def test_what_cannot_be_graded_says_why(content, says, tmp_path):
    path = tmp_path / "notes.ipynb"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(NotALesson, match=says):
        grade_notebook(path)


def test_the_command_prints_a_line_an_exercise_and_goes_on_after_a_bad_file(tmp_path, capsys, monkeypatch):
    done = save(answered("00"), tmp_path)
    bad = tmp_path / "bad.ipynb"
    bad.write_text(json.dumps({"cells": []}))
    monkeypatch.setattr(sys, "argv", ["checks", str(bad), str(done)])
    with pytest.raises(SystemExit) as ended:
        grading.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ended.value.code == 1
    assert lines[1][:3] == [str(bad), "not", "graded"]
    assert [line[1:] for line in lines[2:]] == [
        ["00", "number_of_levels", "done"],
        ["00", "agreement", "done"],
        ["00", "2", "of", "2", "done"],
    ]


def test_the_command_of_the_guide_grades_a_notebook_and_leaves_the_folder_as_it_was(tmp_path):
    code = "def number_of_levels(bits):\n    open('left behind', 'w').write('x')\n    return 2**bits"
    path = save(answered("00", number_of_levels=code), tmp_path)
    command = [sys.executable, "-m", "qsal_helpers.checks", str(path)]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0 and re.search(r"number_of_levels +done", outcome.stdout)
    assert list(tmp_path.iterdir()) == [path]


def test_a_message_cannot_rewrite_the_table():
    assert grading._one_line("wrong\x1b[2K\rdone\nmore") == "wrong[2Kdone"


def test_the_graders_keep_every_outcome():
    before = len(checks.OUTCOMES)
    checks.check_number_of_levels(lambda bits: 2**bits)
    assert checks.OUTCOMES[before:] == [checks.Outcome("number_of_levels", "done")]


def test_a_character_that_the_console_lacks_does_not_lose_the_table(monkeypatch):
    outcomes = [grading.Outcome("number_of_levels", "wrong", "it is → 4"), grading.Outcome("agreement", "done")]
    monkeypatch.setattr(grading, "grade_notebook", lambda path: ("00", outcomes))
    monkeypatch.setattr(sys, "argv", ["checks", "bücher.ipynb"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    with pytest.raises(SystemExit):
        grading.main()
    sys.stdout.flush()
    said = sys.stdout.buffer.getvalue().decode("cp1252")
    assert "it is ? 4" in said and "1 of 2 done" in said and "bücher.ipynb" in said


def test_an_error_as_long_as_a_book_is_cut_and_costs_no_exercise(tmp_path):
    notebook = answered(
        "00",
        number_of_levels="def number_of_levels(bits):\n    raise ValueError('x' * 2_000_000)",
        agreement="def agreement(a, b):\n    return (a.argmax(1) == b.argmax(1)).float().mean()",
    )
    _, (error, other) = grade_notebook(save(notebook, tmp_path))
    assert "ValueError" in error.message and len(error.message) <= grading.LONGEST_MESSAGE and other.state == "done"


def test_a_notebook_that_begins_with_a_byte_order_mark_is_graded(tmp_path):
    path = tmp_path / "anna.ipynb"
    path.write_text(nbformat.writes(answered("00")), encoding="utf-8-sig")
    assert {outcome.state for outcome in grade_notebook(path)[1]} == {"done"}


def test_names_from_an_import_of_everything_are_there_when_a_function_is_graded(tmp_path):
    code = "def bits_needed(decibels):\n    return ceil(log2(10 ** (decibels / 20) + 1))"
    notebook = answered("01", bits_needed=code)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("from math import *"))
    assert states(notebook, tmp_path)["bits_needed"] == "done"


def test_exercises_are_judged_at_the_smallest_scale_whatever_the_teacher_s_own_is(monkeypatch):
    monkeypatch.setenv("QSAL_SCALE", "full")
    code = "import os\ndef number_of_levels(bits):\n    return 2**bits if os.environ['QSAL_SCALE'] == 'smoke' else 0"
    (outcome,) = grading.judge_apart([("number_of_levels", code)])
    assert outcome.state == "done"


def test_the_table_of_a_notebook_names_the_line_at_which_a_function_stopped(tmp_path):
    notebook = answered("00", number_of_levels="def number_of_levels(bits):\n    return 2 ** bitts")
    (error, _) = grade_notebook(save(notebook, tmp_path))[1]
    assert error.state == "error" and error.message.startswith("in `return 2 ** bitts`: NameError")
