"""Each lesson's source follows the skeleton that CONTRIBUTING.md describes.

Title and one-sentence promise, then these headings in this order, with the lesson's own sections between
"Set-up" and "Exercises":

## What you will be able to do
## What you need first          (says the minutes)
## Set-up                       (the cell tagged "parameters", then one code cell)
## Exercises
## In this lesson
## References
## Next                         (links to the next lesson)

Before each panel ``widgets.…_panel(…)``: "Predict first" in the text and a static figure ``plots.…(…)``; after it, text
that begins with "What to notice".
"""

import re
import statistics

import pytest
from lessons import lessons, notebook_of, read_source
from shared import text_of

HEADINGS = [
    "What you will be able to do",
    "What you need first",
    "Set-up",
    "Exercises",
    "In this lesson",
    "References",
    "Next",
]
PANEL = re.compile(r"\bwidgets\.\w*panel\(|^\w+_panel\(", re.MULTILINE)
FIGURE = re.compile(r"\bplots\.\w+\(|\.plot\(")

pytestmark = pytest.mark.parametrize("source", lessons(), ids=lambda path: path.stem)


def cells(source):
    return read_source(source).cells


def code_cells(source):
    return [cell for cell in cells(source) if cell.cell_type == "code"]


def text(source):
    return text_of(read_source(source))


def headings(source):
    return re.findall(r"^## +(.+?) *$", text(source), re.MULTILINE)


def section(source, title):
    """Return the cells under a heading, the cell that holds the heading first."""
    found, inside = [], False
    for cell in cells(source):
        if cell.cell_type == "markdown" and (names := re.findall(r"^## +(.+?) *$", cell.source, re.MULTILINE)):
            inside = title in names
        if inside:
            found.append(cell)
    return found


def prose(source, title):
    return "\n".join(cell.source for cell in section(source, title) if cell.cell_type == "markdown")


def lines(cell):
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def test_lesson_opens_with_a_title_and_a_promise_of_one_sentence(source):
    first = cells(source)[0]
    title, promise = [part.strip() for part in first.source.split("\n\n")[:2]]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", title)
    assert promise.endswith(".")
    assert not re.search(r"[.!?]\s+[A-Z]", promise)


def test_headings_stand_in_the_order_of_the_skeleton(source):
    assert [heading for heading in headings(source) if heading in HEADINGS] == HEADINGS


def test_own_sections_stand_between_set_up_and_exercises(source):
    found = headings(source)
    own = [heading for heading in found if heading not in HEADINGS]
    assert own and own == found[found.index("Set-up") + 1 : found.index("Exercises")]


def test_lesson_says_how_many_minutes_it_takes(source):
    assert re.search(r"\d+ minutes", prose(source, "What you need first"))


def test_set_up_is_the_parameters_cell_and_one_code_cell(source):
    code = [cell for cell in section(source, "Set-up") if cell.cell_type == "code"]
    assert len(code) == 2
    assert code[0].metadata.get("tags") == ["parameters"]
    assert code[0].source == 'SCALE = None  # "smoke", "class" or "full"; None reads $QSAL_SCALE, else "class"'
    assert "import" in code[1].source


def test_code_cells_are_short(source):
    lengths = [lines(cell) for cell in code_cells(source)]
    assert max(lengths) <= 25
    assert statistics.median(lengths) <= 6


def test_sliders_come_from_the_widgets_module(source):
    assert not [
        cell.source for cell in code_cells(source) if re.search(r"\binteract\w*\(|import ipywidgets", cell.source)
    ]


def test_a_prediction_and_a_static_figure_stand_before_each_panel_and_a_remark_after_it(source):
    since_last = []
    for cell, following in zip(cells(source), [*cells(source)[1:], None], strict=True):
        if cell.cell_type == "code" and PANEL.search(cell.source):
            assert any(c.cell_type == "code" and FIGURE.search(c.source) for c in since_last), cell.source
            assert any(c.cell_type == "markdown" and "predict first" in c.source.lower() for c in since_last), (
                cell.source
            )
            assert following and "what to notice" in following.source.lower(), cell.source
            since_last = []
        else:
            since_last.append(cell)


def test_each_exercise_is_checked_and_has_a_folded_solution(source):
    checks = {name for cell in code_cells(source) for name in re.findall(r"checks\.(check_\w+)\(", cell.source)}
    assert checks
    folded = "\n".join(re.findall(r"<details>.*?</details>", text(source), re.DOTALL))
    functions = {name for cell in code_cells(source) for name in re.findall(r"checks\.check_\w+\((\w+)\)", cell.source)}
    assert len(functions) == len(checks)
    for function in functions:
        assert text(source).count(f"def {function}(") == folded.count(f"def {function}(") == 1
    assert "minutes" in prose(source, "Exercises")


def test_last_section_links_to_the_next_lesson_and_that_of_the_last_lesson_to_the_readme(source):
    following = [*(notebook_of(path).name for path in lessons() if path > source), "../README.md"]
    assert f"]({following[0]})" in prose(source, "Next")
