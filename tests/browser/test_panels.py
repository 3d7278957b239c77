"""In a real browser, every lesson runs, every slider changes its picture by keyboard, and nothing complains.

Needs a Chromium. Where there is none a user is told how to get it; in CI (``$CI`` is set) that is a failure.
"""

import os
import re
import shutil

import browser
import nbformat
import pytest
from lessons import NOTEBOOKS, lessons, read_source


@pytest.fixture(scope="module")
def chromium():
    path = browser.find_chromium()
    if path is None and not os.environ.get("CI"):
        pytest.skip(f"This runs where there is a Chromium, and always in CI. {browser.NO_CHROMIUM}")
    assert path, browser.NO_CHROMIUM
    return path


@pytest.fixture(scope="module")
def opened(chromium, tmp_path_factory):
    """Return the page and the address of a JupyterLab over copies of the lessons, at smoke scale."""
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns("source", "*.ipynb"))
    for source in lessons():
        nbformat.write(read_source(source), folder / f"{source.stem}.ipynb")
    with browser.lab_server(folder, "smoke") as address, browser.chromium_page(chromium) as page:
        yield page, address


def panels_in(source):
    return len(re.findall(r"widgets\.\w+_panel\(", source.read_text(encoding="utf-8")))


@pytest.mark.lessons
@pytest.mark.parametrize("source", list(filter(panels_in, lessons())), ids=lambda path: path.stem)
def test_every_slider_changes_its_picture_by_keyboard_without_any_error(source, opened):
    page, address = opened
    complaints = []
    listen = {
        "console": lambda said: complaints.append(f"{said.text} ({said.location})") if said.type == "error" else None,
        "pageerror": lambda error: complaints.append(str(error)),
    }
    for event, heard in listen.items():
        page.on(event, heard)
    with browser.lesson(page, address, f"{source.stem}.ipynb"):
        browser.run_all(page)
        found = browser.panels(page)
        still = [browser.label(h) for panel in found for h in panel.handles if not changes_picture(page, panel, h)]
        messages = [panel.message.inner_text() for panel in found]
        errors = browser.kernel_errors(page)
    for event, heard in listen.items():
        page.remove_listener(event, heard)
    assert errors == []
    assert len(found) == panels_in(source) and all(panel.handles for panel in found)
    assert still == []
    assert messages == [""] * len(found)
    # No error is excused. JupyterLab warns of plugins that start slowly; those are warnings, which are not heard.
    assert complaints == []


def changes_picture(page, panel, handle):
    """Press keys until one changes the picture; leave the slider where it was, so that the next one is not bound by it.

    One step may leave a picture as it is, and at the end of a slider a key does nothing.
    """
    start = handle.get_attribute("aria-valuenow")
    changed = any(
        browser.press(page, panel, handle, key, seconds=3) for key in ("ArrowRight", "ArrowLeft", "End", "Home")
    )
    for key in ("ArrowLeft", "ArrowRight", "Home", "End"):
        if handle.get_attribute("aria-valuenow") != start:
            browser.press(page, panel, handle, key, seconds=3)
    return changed
