"""Make a static site of the lessons, the guide, the glossary and the package's reference: ``python tools/website.py``.

The site goes to build/site and loads nothing from elsewhere: formulas become MathML, which browsers draw themselves.
"""

import itertools
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from lessons import NOTEBOOKS, ROOT, lessons, notebook_of, read_source

import qsal_helpers

SOURCE, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"
PAGES = ("CONTRIBUTING.md", "notebooks/GLOSSARY.md", "benchmarks/RESULTS.md", "qsal_helpers/datasets/README.md")
GUIDE, HOME = "notebooks/README.md", "README.md"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
LOADS = re.compile(
    r"""<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)\s*=\s*["'](?:https?:)?//[^"']+""", re.I
)
CSS_LOADS = re.compile(r"""(?:@import\s+|url\()\s*["']?(?:https?:)?//[^"')]+""", re.I)
TOC = """

```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""
REFERENCE = """# {name}

```{{eval-rst}}
.. automodule:: qsal_helpers.{name}
   :members:
   :member-order: bysource
   :exclude-members: set
```
"""
CONFIGURATION: dict[str, Any] = {
    "project": "QSAL",
    "html_title": "QSAL",
    "language": "en",
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "website"],
    "html_theme": "furo",
    "html_math_renderer": "mathml",
    "html_show_copyright": False,
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "napoleon_use_ivar": True,
    "napoleon_custom_sections": ["Returns", "Raises", "Yields"],  # sentences, as all else
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 4,
    "autodoc_typehints": "none",
    "autodoc_preserve_defaults": True,
    "python_maximum_signature_line_length": 88,
    "suppress_warnings": ["myst.header", "mystnb.language"],
}


def mathml(formula: str, display: str = "inline") -> str:
    """Return a TeX formula as MathML; one that cannot be read stays as readable TeX.

    >>> mathml("x^2").startswith("<math")
    True
    """
    try:
        return convert(formula.strip(), display=display)
    except Exception:  # the converter raises many kinds, and a page with one TeX formula is better than none
        return f"<code>{formula}</code>"


def visit_math(writer: Any, node: Any) -> None:
    """Write a formula within a line."""
    from docutils import nodes

    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(writer: Any, node: Any) -> None:
    """Write a formula of its own line, which may scroll on a narrow screen."""
    from docutils import nodes

    writer.body.append(f'<div style="overflow-x: auto">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def loosen(lines: list[str]) -> list[str]:
    """Return a docstring's lines such that Sphinx takes what stands behind a parameter's name for its description.

    We write ``bits : 2 to 8.``, where Sphinx expects a type.

    >>> loosen(["Parameters", "----------", "bits : 2 to 8."])
    ['Parameters', '----------', 'bits', '    2 to 8.']
    """
    result: list[str] = []
    section = ""
    for line, following in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        if re.fullmatch("-{3,}", following.strip()):
            section = line.strip()
        entry = re.fullmatch(r"([\w*][\w*, ]*?) : (.+)", line)
        result += [entry[1], f"    {entry[2]}"] if entry and section in ("Parameters", "Attributes") else [line]
    return result


def read_docstring(app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Change a docstring's lines in place before Sphinx reads them."""
    lines[:] = loosen(lines)


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx how to write formulas and to read docstrings; it calls this function."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def with_site_links(text: str, path: str) -> str:
    """Return a page's text with links to the README and the guide leading to the pages they have on the site."""
    folder = (ROOT / path).parent

    def moved(match: re.Match) -> str:
        before, link, anchor, after = match.groups()
        target = (folder / link).resolve()
        for page, name in ((HOME, "index.md"), (GUIDE, "guide.md")):
            if target == ROOT / page:
                link = link.removesuffix(Path(page).name) + name
        if target == ROOT / "LICENSE":
            return f"{before}https://opensource.org/license/mit{after}"
        if target == ROOT / "CITATION.cff":
            link = f"path:{link}"  # a file that is downloaded
        return f"{before}{link}{anchor or ''}{after}"

    return text if "://" in path else LINK.sub(moved, text)


def write_page(path: str, text: str) -> None:
    """Write a page of the site's source."""
    target = SOURCE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf8")


def stage(chosen: list[Path], modules: list[str]) -> None:
    """Lay out what the site is made of: the pages where their links expect them, and one page for each module."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    names = [notebook_of(source).stem for source in chosen]
    home = with_site_links((ROOT / HOME).read_text(encoding="utf8"), HOME)
    home += TOC.format(caption="Lessons", pages="\n".join(f"notebooks/{name}" for name in names))
    home += TOC.format(caption="Beside the lessons", pages="notebooks/GLOSSARY\nnotebooks/guide\nCONTRIBUTING")
    home += TOC.format(caption="The package", pages="\n".join(f"reference/{name}" for name in modules))
    write_page("index.md", home)
    write_page("notebooks/guide.md", with_site_links((ROOT / GUIDE).read_text(encoding="utf8"), GUIDE))
    for page in PAGES:
        orphan = "---\norphan: true\n---\n\n" if page.startswith(("benchmarks", "qsal_helpers")) else ""
        write_page(page, orphan + with_site_links((ROOT / page).read_text(encoding="utf8"), page))
    shutil.copy(ROOT / "CITATION.cff", SOURCE)
    for name in modules:
        write_page(f"reference/{name}.md", REFERENCE.format(name=name))
    for source, name in zip(chosen, names, strict=True):
        path = notebook_of(source)
        notebook = nbformat.read(path, as_version=4) if path.exists() else read_source(source)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_site_links(cell.source, f"notebooks/{name}.ipynb")
        nbformat.write(notebook, SOURCE / "notebooks" / f"{name}.ipynb")
    shutil.copytree(NOTEBOOKS / "images", SOURCE / "notebooks" / "images")


def public_modules() -> list[str]:
    """Return the package's modules, without those whose name says that they are its own business."""
    folder = Path(qsal_helpers.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def loads_from_elsewhere(folder: Path = SITE) -> list[str]:
    """Return what the site's pages and style sheets would load from another address; it should be nothing."""
    found = []
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        content = path.read_text(encoding="utf8")
        hits = (LOADS if path.suffix == ".html" else CSS_LOADS).findall(content)
        found += [f"{path.relative_to(folder)}: {hit}" for hit in hits if 'rel="canonical"' not in hit]
    return found


def build(chosen: list[Path], modules: list[str]) -> None:
    """Make the site from some lessons and modules.

    Raises
    ------
    SystemExit
        Sphinx found a fault, such as a link that leads nowhere, or a page loads something from elsewhere.
    """
    from sphinx.application import Sphinx

    stage(chosen, modules)
    shutil.rmtree(SITE, ignore_errors=True)
    app = Sphinx(SOURCE, None, SITE, SOURCE / ".doctrees", "html", CONFIGURATION, warningiserror=True, keep_going=True)
    app.build()
    if app.statuscode:
        sys.exit("The site has faults; the lines above say which.")
    if found := loads_from_elsewhere():
        sys.exit("The site must load nothing from elsewhere:\n" + "\n".join(found))
    (SITE / ".nojekyll").touch()  # or a static host may hide the folders whose name begins with a line


if __name__ == "__main__":
    build(lessons(), public_modules())
    print(f"The site is in {SITE.relative_to(ROOT)}/; open index.html in a browser.")
