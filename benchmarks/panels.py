"""Milliseconds from a key press on a slider to the new picture: `python -m benchmarks.panels`.

Each lesson runs in a real JupyterLab in a headless Chromium, at smoke scale, on this machine. Every slider is moved
by keyboard over its range. "browser" is the time from the key press until the new picture is painted; "Python" is what
the kernel alone takes to draw it. Needs the extra `dev` and a Chromium.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import nbformat
from tqdm.auto import tqdm

from tools import browser
from tools.lessons import NOTEBOOKS, lessons, read_source

TARGET = 150  # milliseconds
# Runs in the lesson's kernel, where the panels are. A first round fills whatever is computed once.
REDRAW = """
import json, time
from qsal_helpers.widgets import PANELS

def _values(control, most=12):
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
    else:
        steps = round((control.max - control.min) / control.step)
        values = [control.min + i * control.step for i in range(steps + 1)]
    return values[:: -(-len(values) // most)]

def _redraw(control):
    times, start = [], control.value
    for value in _values(control):
        before = time.perf_counter()
        control.value = value
        times.append(1000 * (time.perf_counter() - before))
    control.value = start
    return times[1:]

print(json.dumps([[_redraw(control) for control in panel.children[0].children] for panel in PANELS]))
"""


def browser_times(page: browser.Page, panel: browser.Panel, handle: browser.Locator, moves: int) -> list[float]:
    """Return the milliseconds of the moves that changed the picture: to the right, then back and on to the left."""
    keys = ["ArrowRight"] * moves + ["ArrowLeft"] * 2 * moves
    times = [browser.press(page, panel, handle, key, seconds=1) for key in keys]
    return [taken for taken in times if taken is not None]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time the panels' sliders in a browser.")
    parser.add_argument("--lesson", default="", help="the number or name a lesson starts with, as in 02")
    parser.add_argument(
        "--moves", type=int, default=3, help="moves a slider to the right, then twice as many to the left"
    )
    options = parser.parse_args()
    chromium = browser.find_chromium() or sys.exit(browser.NO_CHROMIUM)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "notebooks"
        shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns("source", "*.ipynb"))
        with browser.lab_server(folder, "smoke") as address, browser.chromium_page(chromium) as page:
            for source in tqdm(lessons(options.lesson), "lessons"):
                nbformat.write(read_source(source), folder / f"{source.stem}.ipynb")
                with browser.lesson(page, address, f"{source.stem}.ipynb"):
                    browser.run_all(page)
                    panels = browser.panels(page)
                    python = json.loads(browser.run_code(page, REDRAW)) if panels else []
                    for number, panel in enumerate(panels):
                        for handle, drawn in zip(panel.handles, python[number], strict=True):
                            times = browser_times(page, panel, handle, options.moves)
                            rows.append((source.stem, number + 1, browser.label(handle), times, drawn))
    print(f"Python {platform.python_version()}, {platform.machine()}; milliseconds, target {TARGET}\n")
    print(f"{'lesson':28} panel  {'slider':18} moves  browser: median  maximum  Python: median  maximum")
    for lesson, number, name, times, drawn in rows:
        middle, python = statistics.median(times), statistics.median(drawn)
        print(
            f"{lesson:28} {number:5}  {name:18} {len(times):5} {middle:16.0f} {max(times):8.0f} "
            f"{python:15.0f} {max(drawn):8.0f}"
        )


if __name__ == "__main__":
    main()
