"""Run every lesson in order without a screen: ``python tools/course.py --scale class``.

Executed notebooks and pages for a browser go to build/course.
"""

import argparse
import sys
import threading
import time

import nbformat
import psutil
from lessons import ROOT, SCALES, clean, execute, lessons, pictures, read_source, widget_errors
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill import PapermillExecutionError

OUTPUT = ROOT / "build" / "course"


class PeakMemory(threading.Thread):
    """Watch the resident memory of this process's children, in bytes, until `stop` is called."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Look ten times a second."""
        while not self._done.wait(0.1):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    # One that was forked a moment ago still shares its parent's memory, which would count twice.
                    if time.time() - process.create_time() > 0.1:
                        total += process.memory_info().rss
                except psutil.Error:  # the process ended since the list was made
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        """Stop watching and return the peak in bytes."""
        self._done.set()
        self.join()
        return self.peak


def run_lesson(source: NotebookNode, scale: str, title: str) -> NotebookNode:
    """Execute a lesson; where it fails, end the program with the lesson, the cell and the error."""
    try:
        executed = execute(source, scale, {"SCALE": scale}, title=title)
    except PapermillExecutionError as error:
        number = next((n for n, cell in enumerate(source.cells, 1) if cell.source == error.source), 0)
        sys.exit(f"\n{title} stopped at cell {number}: {error.ename}: {error.evalue}\n{error}")
    except DeadKernelError:
        sys.exit(f"\n{title} stopped: its kernel died, most likely for want of memory. Try make course SCALE=smoke.")
    if errors := widget_errors(executed):
        sys.exit(f"\n{title} stopped: an error hides in a widget: " + "; ".join(errors))
    return executed


def save(notebook: NotebookNode, name: str) -> None:
    """Write a notebook and its page; the page needs the network for nothing but typeset formulas."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, OUTPUT / f"{name}.ipynb")
    exporter = HTMLExporter(require_js_url="", jquery_url="", embed_images=True)
    resources = {"metadata": {"name": name, "path": str(ROOT / "notebooks")}}
    page, _ = exporter.from_notebook_node(notebook, resources)
    (OUTPUT / f"{name}.html").write_text(page, encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run every lesson in order without a screen.")
    parser.add_argument("--scale", choices=SCALES, default="class")
    scale = parser.parse_args().scale
    sources = lessons()
    rows = []
    for number, path in enumerate(sources, 1):
        title = f"lesson {number} of {len(sources)}, {path.stem}"
        source = read_source(path)
        memory = PeakMemory()
        memory.start()
        start = time.perf_counter()
        executed = run_lesson(source, scale, title)
        seconds = time.perf_counter() - start
        rows.append((path.stem, f"{seconds:.0f}", f"{memory.stop() / 2**20:.0f}", str(pictures(executed))))
        save(clean(executed, source), path.stem)
        print(f"{title}: {seconds:.0f} s", flush=True)
    width = max((len(row[0]) for row in rows), default=6)
    print(f"\n{'lesson':{width}}  seconds  peak MiB  pictures   (scale {scale})")
    for name, *figures in rows:
        print(f"{name:{width}}  {figures[0]:>7}  {figures[1]:>8}  {figures[2]:>8}")
    print(f"\nNotebooks and pages are in {OUTPUT.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
