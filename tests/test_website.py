"""The site holds lessons, guide, glossary and reference, works without a network, and shows formulas."""

import pkgutil
import re

import pytest
import website
from lessons import lessons

import qsal_helpers


@pytest.mark.parametrize(
    ("formula", "tag"),
    [
        (r"\frac{h - l}{2^b - 1}", "mfrac"),
        (r"\sqrt{E[w^2]}", "msqrt"),
        (r"\begin{cases} 0 & x < \alpha \\ 1 & x \ge \alpha \end{cases}", "mtable"),
        (r"\sum_i q_i\, a_i", "munder|msub"),
    ],
)
def test_a_formula_becomes_mathml_that_a_browser_draws_by_itself(formula, tag):
    made = website.mathml(formula, "block")
    assert re.search(rf'^<math[^>]*display="block".*<({tag})', made, re.DOTALL)


def test_every_formula_of_the_lessons_becomes_mathml():
    pattern = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)
    formulas = [a or b for path in lessons() for a, b in pattern.findall(text_of(path))]
    assert len(formulas) > 100
    assert [formula for formula in formulas if not website.mathml(formula).startswith("<math")] == []


def text_of(path):
    cells = website.read_source(path).cells
    return re.sub("`[^`]*`", "", "\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))


def test_links_to_the_readme_and_the_guide_lead_to_their_pages_on_the_site():
    text = "[home](../README.md) [guide](README.md#syllabus) [words](GLOSSARY.md#fold) [far](https://arxiv.org/abs/1)"
    moved = "[home](../index.md) [guide](guide.md#syllabus) [words](GLOSSARY.md#fold) [far](https://arxiv.org/abs/1)"
    assert website.with_site_links(text, "notebooks/01_quantization.ipynb") == moved
    assert website.with_site_links("[guide](notebooks/README.md)", "README.md") == "[guide](notebooks/guide.md)"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.html", '<script async src="https://cdn.example/x.js"></script>', 1),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/css">', 1),
        ("a.css", '@import "https://fonts.example/css"; b { src: url(https://fonts.example/f) }', 2),
        ("a.html", '<a href="https://arxiv.org">paper</a><script src="_static/x.js"></script>', 0),
        ("a.css", "b { background: url(data:image/png;base64,AAAA) }", 0),
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_found(tmp_path, name, content, found):
    (tmp_path / name).write_text(content)
    assert len(website.loads_from_elsewhere(tmp_path)) == found


def test_what_stands_behind_a_parameter_s_name_is_its_description_and_no_type():
    lines = ["Parameters", "----------", "low, high : the range.", "    More.", "", "Returns", "-------", "A tensor."]
    wanted = ["Parameters", "----------", "low, high", "    the range.", *lines[3:]]
    assert website.loosen(lines) == wanted


def test_the_site_has_no_fault_and_holds_every_lesson_the_texts_and_the_modules(tmp_path, monkeypatch):
    monkeypatch.setattr(website, "SOURCE", tmp_path / "source")
    monkeypatch.setattr(website, "SITE", tmp_path / "site")
    # Lessons without their outputs, which take long to write.
    monkeypatch.setattr(website, "notebook_of", lambda source: tmp_path / f"{source.stem}.ipynb")
    website.build(lessons(), website.public_modules())  # ends with SystemExit, at a link that leads nowhere for one
    pages = ["index", "notebooks/guide", "notebooks/GLOSSARY", *(f"notebooks/{path.stem}" for path in lessons())]
    modules = [module.name for module in pkgutil.iter_modules(qsal_helpers.__path__) if not module.ispkg]
    pages += [f"reference/{name}" for name in modules if not name.startswith("_")]
    assert [page for page in pages if not (tmp_path / "site" / f"{page}.html").exists()] == []
