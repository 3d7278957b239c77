"""The tools that run lessons find every fault and write notebooks that do not change without a reason."""

import asyncio
import copy
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import course
import ipywidgets
import lessons
import nbformat
import psutil
import pytest
import zmq
import zmq.asyncio
from course import PeakMemory, run_lesson
from engine import WakingOutput
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session
from lessons import ROOT, clean, execute, in_step, pictures, read_source, with_new_prose
from nbclient.exceptions import CellTimeoutError
from sweep import sweep, values_of

from qsal_helpers import plots, widgets

LESSON = """# %% [markdown]
# # A lesson

# %% tags=["parameters"]
SCALE = None

# %%
import os, sys
print(SCALE, os.environ["QSAL_SCALE"])
print("  5%|bar", file=sys.stderr)

# %%
from qsal_helpers import plots, widgets
plots.new_figure()[0]

# %%
widgets.panel(lambda bits: DRAW, {"bits": widgets.slider("bits", 4, 2, 8)})
"""
GOOD = "plots.new_figure(width=bits)[0]"
RAISES = "1 / 0"
DEAD = "plots.new_figure(width=4)[0]"


def lesson(folder, draw=GOOD, more=""):
    path = folder / "07_lesson.py"
    path.write_text(LESSON.replace("DRAW", draw) + more)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    source = read_source(lesson(tmp_path_factory.mktemp("lesson")))
    return source, execute(source, "smoke", {"SCALE": "smoke"})


def test_scale_reaches_the_lesson_as_parameter_and_in_the_environment(executed):
    source, notebook = executed
    assert "smoke smoke" in notebook.cells[3].outputs[0].text


def test_a_cell_that_waits_for_ever_is_given_up(tmp_path):
    source = read_source(lesson(tmp_path, more="\n# %%\nimport threading\nthreading.Event().wait()\n"))
    source.cells = source.cells[-1:]
    with pytest.raises(CellTimeoutError, match="threading.Event"):
        execute(source, "smoke", cell_seconds=5)


def test_any_test_that_waits_for_ever_ends_the_run_with_the_place_where_it_waits(tmp_path):
    path = tmp_path / "test_waiting.py"
    path.write_text("import threading\n\n\ndef test_it():\n    threading.Event().wait()\n")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-o", "faulthandler_timeout=1", path]
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert outcome.returncode == 1 and "Timeout" in outcome.stderr
    assert re.search(r'test_waiting\.py", line 5 in test_it', outcome.stderr)


def test_cleaned_notebook_keeps_figures_and_drops_widgets_progress_bars_and_the_injected_cell(executed):
    source, notebook = executed
    cleaned = clean(notebook, source)
    nbformat.validate(cleaned)
    assert pictures(cleaned) == 1
    assert in_step(cleaned, source)
    assert "widgets" in notebook.metadata and "widgets" not in cleaned.metadata
    assert [cell.execution_count for cell in cleaned.cells[1:]] == [1, 2, 3, 4]
    assert [len(cell.outputs) for cell in cleaned.cells[1:]] == [0, 1, 1, 0]


def test_editing_a_cell_leaves_the_ids_of_the_others_alone(tmp_path):
    before = [cell.id for cell in read_source(lesson(tmp_path)).cells]
    after = [cell.id for cell in read_source(lesson(tmp_path, draw=DEAD)).cells]
    assert before[:-1] == after[:-1] and before[-1] != after[-1]


def test_notebook_is_out_of_step_once_a_line_or_a_tag_of_its_source_changes(executed, tmp_path):
    source, notebook = executed
    cleaned = clean(notebook, source)
    assert not in_step(cleaned, read_source(lesson(tmp_path, more="print(1)\n")))
    untagged = copy.deepcopy(source)
    untagged.cells[1].metadata["tags"] = []
    assert not in_step(cleaned, untagged)


def test_new_text_comes_into_a_notebook_without_touching_its_outputs(executed, tmp_path):
    source, notebook = executed
    cleaned = clean(notebook, source)
    more = "\n# %% [markdown]\n# One more paragraph.\n"
    longer = read_source(lesson(tmp_path, more=more))
    updated = with_new_prose(cleaned, longer)
    nbformat.validate(updated)
    assert in_step(updated, longer) and not in_step(cleaned, longer)
    assert [cell.outputs for cell in updated.cells[1:5]] == [cell.outputs for cell in cleaned.cells[1:5]]
    assert updated.cells[-1].source == "One more paragraph."


def test_text_is_not_taken_over_where_code_changed(executed, tmp_path):
    source, notebook = executed
    assert with_new_prose(clean(notebook, source), read_source(lesson(tmp_path, draw=DEAD))) is None


INTERACT = """
# %%
import ipywidgets
ipywidgets.interactive(lambda bits: 1 / 0, bits=(2, 8))
"""


@pytest.mark.parametrize(("draw", "more", "cell"), [(RAISES, "", 5), (GOOD, INTERACT, 6)])
def test_course_stops_at_an_error_that_hides_in_a_widget_and_names_lesson_and_cell(tmp_path, draw, more, cell):
    source = read_source(lesson(tmp_path, draw, more))
    with pytest.raises(
        SystemExit, match=rf"07_lesson stopped: an error hides in a widget: cell {cell}: .*ZeroDivision"
    ):
        run_lesson(source, "smoke", "07_lesson")


def test_course_stops_at_an_error_and_names_lesson_cell_and_error(tmp_path):
    source = read_source(lesson(tmp_path, more="\n# %%\nundefined_name\n"))
    with pytest.raises(SystemExit, match="07_lesson stopped at cell 6: NameError: .*undefined_name"):
        run_lesson(source, "smoke", "07_lesson")


def test_a_reply_is_noticed_though_a_widget_s_message_went_out_when_it_came_in():
    async def reply_to_one_who_waits():
        with zmq.Context() as context, zmq.asyncio.Context() as waiting_context:
            kernel, socket = context.socket(zmq.ROUTER), waiting_context.socket(zmq.DEALER)
            socket.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
            session, channel = Session(key=b""), AsyncZMQSocketChannel(socket, Session(key=b""))
            channel.send(session.msg("execute_request"))
            sender, _ = session.feed_identities(kernel.recv_multipart())
            waiting = asyncio.ensure_future(channel.get_msg())
            await asyncio.sleep(0)
            session.send(kernel, "execute_reply", ident=sender)
            second_handle = zmq.Socket.shadow(socket.underlying)
            while not second_handle.get(zmq.EVENTS) & zmq.POLLIN:
                pass
            client = SimpleNamespace(session=session, shell_channel=channel)
            widget = WakingOutput("an id", {"outputs": []}, client, None)
            widget.parent_header = {}
            widget.send({})
            try:
                return await asyncio.wait_for(waiting, 20)
            finally:
                kernel.close(0)
                socket.close(0)

    assert asyncio.run(reply_to_one_who_waits())["header"]["msg_type"] == "execute_reply"


@pytest.mark.parametrize(
    ("draw", "faults"),
    [
        (lambda bits: plots.new_figure(width=bits)[0], []),
        (lambda bits: plots.new_figure(width=bits / (bits != 5))[0], ["bits = 5: .*ZeroDivisionError"]),
        (lambda bits: plots.new_figure(width=4)[0], ["bits moves nothing"]),
    ],
)
def test_sweep_finds_a_value_that_raises_and_a_slider_that_moves_nothing(draw, faults):
    slider = widgets.slider("bits", 4, 2, 8)
    found = sweep(widgets.panel(draw, {"bits": slider}))
    assert len(found) == len(faults) and all(map(re.search, faults, found))
    assert slider.value == 4


@pytest.mark.parametrize(
    ("control", "first", "last"),
    [
        (widgets.slider("alpha", 2.0, 0.1, 6.0), 0.1, 6.0),
        (widgets.slider("steps", 10, 1, 1000), 1, 1000),
        (widgets.choice("precision", ["fp32", "w4a4", "w2a2"]), "fp32", "w2a2"),
        (ipywidgets.Dropdown(options=[("two", 2), ("three", 3)]), 2, 3),
        (ipywidgets.Checkbox(), False, True),
    ],
)
def test_sweep_reaches_both_ends_of_a_control_in_at_most_twelve_steps(control, first, last):
    values = values_of(control)
    assert (values[0], values[-1]) == (first, last)
    assert 2 <= len(values) <= 12


def test_peak_memory_counts_a_child_that_is_gone_by_now_and_counts_it_once():
    memory = PeakMemory()
    memory.start()
    script = "x = bytearray(200 * 2**20); import time; time.sleep(1)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert 200 < memory.stop() / 2**20 < 300


def test_peak_memory_leaves_out_a_child_that_was_forked_a_moment_ago_and_one_that_ends_meanwhile(monkeypatch):
    def child(rss, age):
        return SimpleNamespace(create_time=lambda: time.time() - age, memory_info=lambda: SimpleNamespace(rss=rss))

    def gone():
        raise psutil.NoSuchProcess(1)

    children = [child(5, 10), child(7, 10), child(100, 0), SimpleNamespace(create_time=gone, memory_info=gone)]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: children))
    memory, looks = PeakMemory(), iter([False, False, True])
    memory._done = SimpleNamespace(wait=lambda seconds: next(looks))
    memory.run()
    assert memory.peak == 5 + 7


def test_the_course_leaves_a_notebook_and_a_page_of_each_lesson_and_prints_their_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "lessons", lambda: [lesson(tmp_path)])
    monkeypatch.setattr(course, "OUTPUT", ROOT / "build" / "of a test")
    monkeypatch.setattr(sys, "argv", ["course.py", "--scale", "smoke"])
    try:
        course.main()
        made = {path.name: path.read_text(encoding="utf8") for path in course.OUTPUT.iterdir()}
    finally:
        shutil.rmtree(course.OUTPUT, ignore_errors=True)
    assert set(made) == {"07_lesson.ipynb", "07_lesson.html"}
    assert (
        pictures(nbformat.reads(made["07_lesson.ipynb"], as_version=4)) == 1
        and "data:image/png" in made["07_lesson.html"]
    )
    (row,) = re.findall(r"^07_lesson +(\d+) +(\d+) +(\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert int(row[1]) > 50 and row[2] == "1"


@pytest.fixture
def one_lesson(executed, tmp_path, monkeypatch):
    """The source of one lesson, alone in its folder, with its notebook in step."""
    monkeypatch.setattr(lessons, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(lessons, "SOURCES", tmp_path / "source")
    monkeypatch.setattr(lessons, "execute", lambda *_, **__: pytest.fail("a lesson was executed"))
    (tmp_path / "source").mkdir()
    source = lesson(tmp_path / "source")
    nbformat.write(clean(executed[1], executed[0]), lessons.notebook_of(source))
    return source


def test_the_check_names_a_notebook_that_differs_from_its_source_is_missing_or_has_none(one_lesson, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lessons.py", "--check"])
    lessons.main()
    lessons.notebook_of(one_lesson).with_name("08_other.ipynb").write_bytes(
        lessons.notebook_of(one_lesson).read_bytes()
    )
    one_lesson.with_name("09_new.py").write_text(LESSON)
    lesson(one_lesson.parent, more="print(1)\n")
    with pytest.raises(SystemExit) as ended:
        lessons.main()
    assert ended.value.code.splitlines()[:-1] == [
        "07_lesson.ipynb differs from source/07_lesson.py",
        "09_new.ipynb is missing",
        "08_other.ipynb has no source",
    ]


def test_the_prose_command_takes_over_new_text_unexecuted_and_refuses_new_code(one_lesson, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lessons.py", "--prose"])
    lesson(one_lesson.parent, more="\n# %% [markdown]\n# One more paragraph.\n")
    assert lessons.differing()
    lessons.main()
    assert lessons.differing() == []
    lesson(one_lesson.parent, draw=DEAD)
    with pytest.raises(SystemExit, match="code of 07_lesson.ipynb changed, so make notebooks must execute it"):
        lessons.main()
