"""The teacher's guide, the glossary, the lessons and the links between all of them say the same."""

import functools
import re
from xml.etree import ElementTree

import pytest
from lessons import NOTEBOOKS, ROOT, lessons, notebook_of, read_source
from shared import text_of

GUIDE = (NOTEBOOKS / "README.md").read_text(encoding="utf8")
GLOSSARY = (NOTEBOOKS / "GLOSSARY.md").read_text(encoding="utf8")
FRAME = {"What you will be able to do", "What you need first", "Set-up", "In this lesson", "References", "Next"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
EXERCISE = re.compile(r"^### Exercise (\d+): .*?(\d+) minutes\)", re.MULTILINE)
PAGES = [
    *ROOT.glob("*.md"),
    *(p for top in ("notebooks", "qsal_helpers", "tests", "benchmarks") for p in ROOT.glob(f"{top}/**/*.md")),
]

each_lesson = pytest.mark.parametrize("source", lessons(), ids=lambda path: path.stem)


@functools.cache
def text(source):
    return text_of(read_source(source))


def sections(source):
    """Return the text of each section by its heading; a heading is a line, so code in a solution is none."""
    parts = re.split(r"^## +(.+?) *$", text(source), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def stated(source):
    """Return the minutes a lesson states: in all, to read and play, for the exercises."""
    (found,) = re.findall(r"About (\d+) minutes:\s+(\d+)\s+to read and play,\s+(\d+)\s+for", text(source))
    return [int(minutes) for minutes in found]


def exercises(part):
    return [(int(number), int(minutes)) for number, minutes in EXERCISE.findall(part)]


def chapter(source):
    """Return what the guide says of a lesson."""
    found = re.findall(rf"^### {source.stem[:2]} .*?(?=^### |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"notebooks/README.md needs one chapter for lesson {source.stem[:2]}"
    return found[0]


def rows(part, title):
    """Return the cells of the rows of the table whose first heading is `title`."""
    lines = part[part.index(f"| {title} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def slug(heading):
    """Return the anchor that code-hosting sites give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ---------------------------------------------------------------- the guide and the lessons


@each_lesson
def test_the_syllabus_and_the_readme_name_each_lesson_with_its_minutes(source):
    for page, path in (
        (GUIDE, notebook_of(source).name),
        ((ROOT / "README.md").read_text("utf8"), f"notebooks/{notebook_of(source).name}"),
    ):
        (row,) = [
            line
            for line in page.splitlines()
            if line.startswith("| [") and line.split("](")[1].startswith(f"{path})") and re.search(r"\| \d+ \|$", line)
        ]
        assert row.rstrip("| ").split("| ")[-1] == str(stated(source)[0])


@each_lesson
def test_the_guide_lists_the_sections_of_each_lesson_with_minutes_that_add_up(source):
    table = rows(chapter(source), "section")
    assert [row[0] for row in table[1:]] == [name for name in sections(source) if name not in FRAME]
    assert sum(int(row[1]) for row in table) == stated(source)[1]


@each_lesson
def test_the_guide_gives_each_exercise_its_section_and_minutes(source):
    for name, _, listed in rows(chapter(source), "section")[1:]:
        assert [tuple(map(int, pair)) for pair in re.findall(r"(\d+): (\d+)", listed)] == exercises(
            sections(source)[name]
        )


@each_lesson
def test_the_minutes_of_a_lesson_s_exercises_add_up_to_what_it_states(source):
    assert sum(minutes for _, minutes in exercises(text(source))) == stated(source)[2]


@each_lesson
def test_the_guide_asks_examines_and_names_the_section_that_dispels_each_misconception(source):
    told = chapter(source)
    headings = re.findall(r"^##+ +(.+?) *$", text(source), re.MULTILINE)
    assert "**Ask.**" in told and "**For an exam.**" in told and "*A good answer:" in re.sub(r"\s+", " ", told)
    table = rows(told, "misconception")
    assert len(table) >= 3
    for _, where in table:
        named = re.match(r'"([^"]+)"', where)
        assert named and any(heading.startswith(named[1]) for heading in headings), where


def test_the_plans_name_sections_that_the_lessons_have():
    plans = GUIDE[GUIDE.index("## A plan for one class") : GUIDE.index("## Grading")]
    pieces = re.findall(r"\[(\d\d)\]\([^)]*\)([^|\[]*)", plans)
    named = [(number, name) for number, piece in pieces for name in re.findall(r'"([^"]+)"', piece)]
    assert len(named) > 10
    for number, name in named:
        (source,) = lessons(number)
        assert name in sections(source), (number, name)


# ---------------------------------------------------------------- the glossary


def terms():
    """Return what the glossary says of each term."""
    parts = re.split(r"^### (.+)$", GLOSSARY, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_glossary_is_in_alphabetical_order_and_has_each_term_once():
    names = re.findall(r"^### (.+)$", GLOSSARY, re.MULTILINE)
    assert names == sorted(set(names), key=str.lower)


@pytest.mark.parametrize("term", terms())
def test_a_term_is_explained_in_few_words_and_stands_in_the_lessons_it_names(term):
    named = re.findall(r"\((\d\d_\w+)\.ipynb\)", terms()[term])
    assert named and 5 < len(terms()[term].split()) < 70
    for stem in named:
        (source,) = lessons(stem)
        assert term.lower() in re.sub(r"\s+", " ", text(source)).lower()


@each_lesson
def test_each_lesson_links_to_the_glossary_and_to_terms_that_it_has(source):
    need = sections(source)["What you need first"]
    assert "(GLOSSARY.md)" in need
    anchors = re.findall(r"GLOSSARY\.md#([^)]+)\)", text(source))
    assert anchors and set(anchors) <= {slug(term) for term in terms()}


# ---------------------------------------------------------------- links and pictures


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_of_a_page_lead_to_files_and_anchors(page):
    content = page.read_text(encoding="utf8")
    for link in LINK.findall(re.sub(r"```.*?```", "", content, flags=re.DOTALL)):
        if "://" not in link and not link.startswith("mailto:"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            if anchor and target.suffix == ".md":
                headings = re.findall(r"^#+ +(.+?) *$", target.read_text(encoding="utf8"), re.MULTILINE)
                assert anchor in map(slug, headings), link


@each_lesson
def test_relative_links_and_pictures_of_a_lesson_lead_to_files(source):
    links = [link.partition("#")[0] for link in LINK.findall(text(source)) if "://" not in link]
    assert [link for link in links if link and not (NOTEBOOKS / link).exists()] == []


@each_lesson
def test_each_diagram_of_a_lesson_is_described_in_words(source):
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text(source))
    assert all(len(words.split()) > 15 for words, _ in pictures)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("images/*.svg")), ids=lambda path: path.name)
def test_a_diagram_has_a_title_and_a_background_and_loads_nothing(path):
    content = path.read_text(encoding="utf8")
    root = ElementTree.fromstring(content)
    name = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{name}title").text and root.get("role") == "img"
    assert root.find(f"{name}rect").get("fill") == "#ffffff"
    assert not re.search(r"<script|<style|<image|href|@import|url\((?!#)|\son\w+=", content)
    assert len(content) < 20_000


def test_each_diagram_stands_in_a_lesson():
    shown = {link for source in lessons() for link in LINK.findall(text(source))}
    assert {f"images/{path.name}" for path in NOTEBOOKS.glob("images/*.svg")} <= shown
