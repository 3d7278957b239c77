"""Each lesson runs at smoke scale, shows no error in a widget, and survives every slider's whole range."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lessons import ROOT, execute, lessons, notebook_of, read_source, widget_errors
from papermill import PapermillExecutionError

SWEEP = (Path(__file__).parent / "sweep.py").read_text() + "\n\nsweep_all()\nwander_all(12)\n"

# A kernel that is not heard from would be waited for without end.
CELL_SECONDS = 300


def with_sweep(source):
    lesson = read_source(source)
    lesson.cells.append(nbformat.v4.new_code_cell(SWEEP, id="sweep"))
    return lesson


@functools.cache
def executed(source):
    """Return the executed lesson and the error that stopped it."""
    try:
        return execute(with_sweep(source), "smoke", {"SCALE": "smoke"}, cell_seconds=CELL_SECONDS), None
    except PapermillExecutionError as error:
        return None, error


@pytest.mark.lessons
@pytest.mark.parametrize("source", lessons(), ids=lambda path: path.stem)
def test_lesson_runs_from_top_to_bottom(source):
    notebook, error = executed(source)
    assert error is None or error.source == SWEEP, f"{error.ename}: {error.evalue}\n{error.source}"


@pytest.mark.lessons
@pytest.mark.parametrize("source", lessons(), ids=lambda path: path.stem)
def test_every_slider_moves_over_its_whole_range_and_changes_the_picture(source):
    notebook, error = executed(source)
    assert error is None, f"{error.ename}: {error.evalue}"
    assert widget_errors(notebook) == []


@pytest.mark.lessons
@pytest.mark.parametrize("source", lessons(), ids=lambda path: path.stem)
def test_marked_cells_print_what_the_committed_notebook_shows(source):
    assert "# NBVAL_CHECK_OUTPUT" in source.read_text(encoding="utf-8")
    options = ["--nbval-lax", f"--nbval-cell-timeout={CELL_SECONDS}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(notebook_of(source))]
    outcome = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout[-4000:]
