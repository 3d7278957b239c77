"""Turn the lessons' sources into executed notebooks, and check that the two are in step.

python tools/lessons.py                 execute the lessons whose source changed
python tools/lessons.py --lesson 02     execute one
python tools/lessons.py --force         execute all
python tools/lessons.py --prose         execute nothing; bring new text into notebooks whose code has not changed
python tools/lessons.py --check         say which notebooks differ from their source
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "source"
SCALES = ("smoke", "class", "full")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_TEXT = re.compile(r"^(interactive|[A-Z]\w*(Box|Output|Tab|Slider|Progress))\(|^Output\(")
PROGRESS_BAR = re.compile(r"\r|\d%\|")


def lessons(number: str = "") -> list[Path]:
    """Return the lessons' sources in order, or the ones whose name starts with `number`."""
    return sorted(SOURCES.glob(f"{number}*.py"))


def notebook_of(source: Path) -> Path:
    """Return where the executed notebook of a source lies."""
    return NOTEBOOKS / f"{source.stem}.ipynb"


def read_source(source: Path) -> NotebookNode:
    """Read a lesson's source as a notebook without outputs.

    A cell's id comes from its text, so that executing a lesson again, or editing another cell, leaves it alone.
    """
    notebook = jupytext.read(source)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def in_step(notebook: NotebookNode, source: NotebookNode) -> bool:
    """Tell whether two notebooks have the same cells, outputs aside."""

    def cells(of: NotebookNode) -> list[tuple]:
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in of.cells]

    return cells(notebook) == cells(source)


def differing() -> list[str]:
    """Return one sentence for every notebook that is not in step with its source."""
    faults = []
    for source in lessons():
        path = notebook_of(source)
        if not path.exists():
            faults.append(f"{path.name} is missing")
        elif not in_step(nbformat.read(path, as_version=4), read_source(source)):
            faults.append(f"{path.name} differs from source/{source.name}")
    known = {notebook_of(source) for source in lessons()}
    return faults + [f"{path.name} has no source" for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path not in known]


def execute(
    notebook: NotebookNode,
    scale: str,
    parameters: dict[str, Any] | None = None,
    title: str | None = None,
    cell_seconds: int | None = None,
) -> NotebookNode:
    """Execute a notebook from top to bottom in a fresh kernel whose ``$QSAL_SCALE`` is `scale`.

    With a `title`, a bar shows the cells going by.

    Raises
    ------
    papermill.PapermillExecutionError
        A cell raised; the error names the cell and the exception.
    nbclient.exceptions.CellTimeoutError
        A cell took more than `cell_seconds`, or the kernel was not heard from for so long.
    """
    import papermill
    from engine import LessonEngine
    from papermill.engines import papermill_engines

    papermill_engines.register("lesson", LessonEngine)
    os.environ["QSAL_SCALE"] = scale
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lesson.ipynb"
        nbformat.write(notebook, path)
        bar = {"desc": title, "leave": False} if title else False
        return papermill.execute_notebook(
            path,
            None,
            parameters=parameters,
            engine_name="lesson",
            cwd=NOTEBOOKS,
            kernel_name="python3",
            progress_bar=bar,
            execution_timeout=cell_seconds,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )


def widget_errors(notebook: NotebookNode) -> list[str]:
    """Return the errors that hide in widgets, each with the number of its cell.

    A callback of ``interact`` that raises prints into a widget, a panel of the course shows a sentence in place of
    its picture, and the runner sees a notebook without a fault.
    """
    everything = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    models = {model_id: model["state"] for model_id, model in everything.get("state", {}).items()}
    found = []
    for number, cell in enumerate(own_cells(notebook), 1):
        for output in cell.get("outputs", []):
            view = output.get("data", {}).get(WIDGET_VIEW, {})
            found += [f"cell {number}: {fault}" for fault in faults_inside(view.get("model_id"), models)]
    return found


def faults_inside(model_id: str | None, models: dict[str, Any]) -> list[str]:
    """Return the errors that a widget and its children show."""
    state = models.get(model_id, {})
    faults = [
        f"{output.ename}: {output.evalue}" for output in state.get("outputs", ()) if output["output_type"] == "error"
    ]
    if "qsal-error" in state.get("_dom_classes", ()) and state.get("value"):
        faults.append(state["value"])
    for child in state.get("children", ()):
        faults += faults_inside(child.removeprefix("IPY_MODEL_"), models)
    return faults


def own_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return an executed notebook's cells without the one that the runner put in to set the scale."""
    return [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def pictures(notebook: NotebookNode) -> int:
    """Count the pictures among a notebook's outputs."""
    return sum(
        any(kind.startswith("image/") for kind in output.get("data", {}))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def clean(notebook: NotebookNode, source: NotebookNode) -> NotebookNode:
    """Return the source's cells with the outputs that a page without a kernel can show.

    Widgets, progress bars, timings and the runner's notes go away.
    """
    result = nbformat.from_dict(source)
    count = 0
    for cell, done in zip(result.cells, own_cells(notebook), strict=True):
        if cell.cell_type != "code":
            continue
        if done.get("execution_count") is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = merge_streams([output for output in done.outputs if is_lasting(output)])
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return result


def is_lasting(output: NotebookNode) -> bool:
    """Tell whether an output says something to a reader of a page without a kernel."""
    if output.output_type == "stream" and output.name == "stderr":
        return not PROGRESS_BAR.search(output.text)
    data = output.get("data", {})
    if WIDGET_VIEW in data:
        return False
    return not (set(data) == {"text/plain"} and WIDGET_TEXT.match(data["text/plain"]))


def merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join the pieces in which printed text arrived, which differ from run to run."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def with_new_prose(notebook: NotebookNode, source: NotebookNode) -> NotebookNode | None:
    """Return the source's cells with the notebook's outputs, or None if a code cell or its tags changed."""

    def code(of: NotebookNode) -> list[NotebookNode]:
        return [cell for cell in of.cells if cell.cell_type == "code"]

    def asked(of: NotebookNode) -> list[tuple]:
        return [(cell.source, cell.metadata.get("tags", [])) for cell in code(of)]

    if asked(notebook) != asked(source):
        return None
    result = nbformat.from_dict(source)
    for cell, done in zip(code(result), code(notebook), strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return result


def write_prose(source: Path) -> bool:
    """Bring a source's new text into its notebook without executing it; tell whether that was possible."""
    path = notebook_of(source)
    notebook = with_new_prose(nbformat.read(path, as_version=4), read_source(source)) if path.exists() else None
    if notebook:
        nbformat.write(notebook, path)
        print(f"wrote the text of notebooks/{path.name}", flush=True)
    return notebook is not None


def write(source: Path) -> None:
    """Execute a lesson at class scale and write its notebook."""
    unexecuted = read_source(source)
    notebook = execute(unexecuted, "class", title=source.stem)
    if errors := widget_errors(notebook):
        sys.exit(f"{source.stem}: an error hides in a widget: {'; '.join(errors)}")
    nbformat.write(clean(notebook, unexecuted), notebook_of(source))
    print(f"wrote notebooks/{notebook_of(source).name}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Execute the lessons' sources into notebooks.")
    parser.add_argument("--lesson", default="", help="the number or name a lesson starts with, as in 02")
    parser.add_argument("--force", action="store_true", help="execute lessons that have not changed, too")
    parser.add_argument("--check", action="store_true", help="execute nothing; fail where notebook and source differ")
    parser.add_argument("--prose", action="store_true", help="execute nothing; take over text where only text changed")
    options = parser.parse_args()
    if options.check:
        if faults := differing():
            sys.exit("\n".join(faults) + "\nRun make notebooks and commit what it writes.")
        return
    chosen = lessons(options.lesson)
    if not chosen:
        sys.exit(f"No lesson in notebooks/source starts with {options.lesson!r}.")
    stale = {sentence.split()[0] for sentence in differing()}
    left = []
    for source in chosen:
        name, execute_anyway = notebook_of(source).name, bool(options.lesson or options.force) and not options.prose
        if name not in stale and not execute_anyway:
            print(f"notebooks/{name} is in step with its source", flush=True)
        elif execute_anyway or not write_prose(source):
            if options.prose:
                left.append(name)
            else:
                write(source)
    if left:
        sys.exit(f"The code of {', '.join(left)} changed, so make notebooks must execute it.")


if __name__ == "__main__":
    main()
