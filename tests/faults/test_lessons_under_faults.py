"""Lessons run twice, alone, side by side, after a kill, under any move of any slider, and in unkind places."""

import ast
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
from course import PeakMemory
from IPython.core.inputtransformer2 import TransformerManager
from lessons import ROOT, WIDGET_VIEW, execute, lessons, own_cells, read_source, widget_errors

HERE = Path(__file__).parent
SWEEP = (ROOT / "tests" / "notebooks" / "sweep.py").read_text()
LESSONS = lessons()
# The lesson that the suite takes where the soak takes all of them: it trains, draws and shows a panel.
ONE = next(path for path in LESSONS if path.stem.startswith("02"))
SECONDS = re.compile(r"\d+(\.\d+)?(?=\s*(s|ms|seconds|milliseconds|minutes|images/s|MB|MiB|GB|GiB)\b)|\d+:\d\d")

each_lesson = pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)

# Executes a lesson in a process of its own: python -c PROGRAM NAME OUTPUT SCALE, in the folder of a repository.
PROGRAM = """
import sys
sys.path.insert(0, "tools")
import nbformat
from lessons import execute, lessons, read_source, widget_errors
import lessons as tool
name, output, scale = sys.argv[1:]
source = read_source(next(path for path in lessons() if path.stem == name))
notebook = execute(source, scale, {"SCALE": scale}, cell_seconds=300)
assert not widget_errors(notebook), widget_errors(notebook)
nbformat.write(notebook, output)
"""


def run(source, output, scale="smoke", repository=ROOT, before=(), **environment):
    """Execute a lesson in fresh processes, and return it."""
    command = [*before, sys.executable, "-c", PROGRAM, source.stem, str(output), scale]
    variables = os.environ | {"PYTHONPATH": str(repository)} | environment
    outcome = subprocess.run(command, cwd=repository, env=variables, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return nbformat.read(output, as_version=4)


def texts(notebook):
    """Return the printed and shown text of each cell that measures no time, without progress bars and addresses."""
    found = []
    for cell in own_cells(notebook):
        if "measures-time" in cell.metadata.get("tags", []):
            continue
        pieces = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.get("name") != "stderr" and WIDGET_VIEW not in data:
                pieces.append(output.get("text", "") + data.get("text/plain", "") + data.get("text/html", ""))
        found.append(re.sub(r"0x[0-9a-f]+", "0x", "".join(pieces)))
    return found


def pictures(notebook):
    return [
        value
        for cell in own_cells(notebook)
        for output in cell.get("outputs", [])
        for kind, value in output.get("data", {}).items()
        if kind.startswith("image/")
    ]


# ---------------------------------------------------------------- again


def timed(text):
    """Replace figures that depend on how fast or how busy the machine is."""
    return SECONDS.sub("#", text)


def assert_same_numbers(one, other):
    for number, (first, second) in enumerate(zip(texts(one), texts(other), strict=True), 1):
        assert timed(first) == timed(second), f"cell {number}"
    assert len(pictures(one)) == len(pictures(other)) > 0


def test_two_runs_of_a_lesson_in_fresh_processes_give_the_same_text_digit_for_digit(tmp_path):
    assert_same_numbers(run(ONE, tmp_path / "1.ipynb"), run(ONE, tmp_path / "2.ipynb"))


@pytest.mark.soak
@each_lesson
def test_two_runs_of_each_lesson_in_fresh_processes_give_the_same_text_digit_for_digit(source, tmp_path):
    assert_same_numbers(run(source, tmp_path / "1.ipynb"), run(source, tmp_path / "2.ipynb"))


def twice(source):
    """Return a lesson whose cells come twice, for one kernel."""
    lesson = read_source(source)
    again = [cell for cell in read_source(source).cells if cell.cell_type == "code"]
    for cell in again:
        cell.id += "-again"
    lesson.cells += again
    return lesson


@pytest.mark.soak
@each_lesson
def test_each_lesson_runs_twice_in_one_kernel(source):
    notebook = execute(twice(source), "smoke", {})
    assert widget_errors(notebook) == []


@pytest.mark.soak
@each_lesson
def test_a_lesson_whose_kernel_is_killed_in_the_middle_runs_from_the_top(source, tmp_path):
    lesson = read_source(source)
    half = len(lesson.cells) // 2
    lesson.cells[half:] = [nbformat.v4.new_code_cell("import os\nos.kill(os.getpid(), 9)")]
    with pytest.raises(Exception, match="[Kk]ernel died"):
        execute(lesson, "smoke", {})
    run(source, tmp_path / "again.ipynb")


@pytest.mark.soak
@each_lesson
def test_two_kernels_run_a_lesson_at_once_with_the_same_numbers(source, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda n: run(source, tmp_path / f"{n}.ipynb"), range(2))
    assert_same_numbers(one, other)


# ---------------------------------------------------------------- any slider at any value in any order


def wandering(source, moves):
    lesson = read_source(source)
    lesson.cells.append(nbformat.v4.new_code_cell(f"{SWEEP}\n\nwander_all({moves})\n", id="wander"))
    return lesson


@pytest.mark.soak
@each_lesson
def test_a_thousand_random_moves_leave_every_panel_drawing(source):
    notebook = execute(wandering(source, 1000), "smoke", {})
    assert widget_errors(notebook) == []
    print(source.stem, notebook.cells[-1].outputs[0].text)


# ---------------------------------------------------------------- unkind places


def copy_of_the_repository(folder):
    """Copy what a lesson needs into a folder that nobody may write to."""
    copy = folder / "für alle, nur lesen"
    for name in ("notebooks", "qsal_helpers", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return copy


def unkind(folder):
    """Return what `run` needs: no network, a repository without write permission, an odd home, an old locale."""
    home = folder / "Jürgen Müller's home"
    home.mkdir()
    return {
        "repository": copy_of_the_repository(folder),
        "before": [sys.executable, str(HERE / "confined.py")],
        "HOME": str(home),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def test_a_lesson_runs_offline_in_a_read_only_repository_with_an_odd_home_and_a_plain_ascii_locale(tmp_path):
    notebook = run(ONE, tmp_path / "out.ipynb", **unkind(tmp_path))
    assert len(pictures(notebook)) > 0


@pytest.mark.soak
@each_lesson
def test_each_lesson_runs_offline_in_a_read_only_repository_with_an_odd_home_and_a_plain_ascii_locale(source, tmp_path):
    notebook = run(source, tmp_path / "out.ipynb", **unkind(tmp_path))
    assert len(pictures(notebook)) > 0


@pytest.mark.soak
@pytest.mark.parametrize("name", ["de_DE.UTF-8", "tr_TR.UTF-8", "C.UTF-8", "POSIX"])
def test_a_lesson_runs_under_other_locales(name, tmp_path):
    assert_same_numbers(run(ONE, tmp_path / "1.ipynb", LC_ALL=name), run(ONE, tmp_path / "2.ipynb"))


@pytest.mark.soak
@each_lesson
def test_each_lesson_runs_with_one_thread_and_with_many(source, tmp_path):
    for threads in (1, 2 * psutil.cpu_count()):
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        assert widget_errors(run(source, tmp_path / f"{threads}.ipynb", **variables)) == []


@pytest.mark.soak
@each_lesson
def test_each_lesson_stays_under_two_gigabytes_at_smoke_scale(source, tmp_path):
    memory = PeakMemory()
    memory.start()
    run(source, tmp_path / "out.ipynb")
    peak = memory.stop() / 2**20
    print(f"{source.stem}: {peak:.0f} MiB, its runner included")
    assert peak < 2048


FETCHING = re.compile(
    r"\b(urllib|requests|httpx|aiohttp|ftplib|socket|urlopen|from_pretrained)\b|\bhub\.load|_Weights\b|"
    r"\b(download|pretrained)=True"
)
# In strings, where a sentence may name the rest: an address, a program that fetches, torchvision's trained weights.
FETCHED = re.compile(
    r"\w://|(^|[;&|(]|-m)\s*(curl|wget|pip|conda|git)\b|^(DEFAULT|IMAGENET1K_V\d)$", flags=re.MULTILINE
)


def fetches(code):
    """Tell whether a cell would fetch something, whatever its comments cite and its sentences advise."""
    tree = ast.parse(TransformerManager().transform_cell(code))
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if any(FETCHED.search(string.value) for string in strings):
        return True
    for string in strings:
        string.value = ""
    return bool(FETCHING.search(ast.unparse(tree)))


@pytest.mark.parametrize(
    "code",
    [
        "pd.read_csv('https://example.org/a.csv')",
        'page = f"http://{host}/a"',
        "!curl -O example.org/a",
        "files = !cd /tmp && wget example.org/a",
        "%pip install a",
        "%%bash\ncd /tmp\ngit clone a",
        "subprocess.run([sys.executable, '-m', 'pip', 'install', 'a'])",
        "os.system('python -m pip install a')",
        "load_data('mnist', 'full', download=True)",
        "from urllib.request import urlopen",
        "resnet18(weights='DEFAULT')",
        "torch.hub.load(a, b)",
    ],
)
def test_a_cell_that_would_fetch_something_is_noticed(code):
    assert fetches(code)


def test_a_cell_that_cites_an_address_or_says_how_to_fetch_something_fetches_nothing():
    assert not fetches(
        """
a = 2  # after https://arxiv.org/abs/1805.06085
print("To get it once: load_data('mnist', 'full', download=True), or with curl and requests.")
"""
    )


def test_no_lesson_asks_the_network_for_anything():
    for source in LESSONS:
        code = [cell.source for cell in read_source(source).cells if cell.cell_type == "code"]
        assert not [text for text in code if fetches(text)], source.stem
