"""The notebooks that people open are executed, in step with their sources, and render without a kernel."""

import re

import nbformat
import pytest
from lessons import WIDGET_VIEW, differing, lessons, notebook_of, pictures, read_source

PATHS = [notebook_of(source) for source in lessons()]
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~])/(home|root|work|tmp|Users|usr|opt|mnt|private|var)/\w|\b[A-Z]:\\\w")

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(path):
    pieces = []
    for output in outputs(path):
        pieces.append(output.get("text", ""))
        pieces += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(pieces)


def test_notebooks_and_sources_are_in_step():
    assert differing() == []


@pytest.mark.parametrize("source", lessons(), ids=lambda path: path.stem)
def test_a_source_read_in_another_process_gives_its_cells_the_ids_that_the_notebook_has(source):
    ids = lambda notebook: [cell.id for cell in notebook.cells]
    assert ids(read_source(source)) == ids(nbformat.read(notebook_of(source), as_version=4))


@each_notebook
def test_notebook_is_executed_from_top_to_bottom(path):
    counts = [
        cell.execution_count
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and cell.source.strip()
    ]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_notebook_shows_no_error_and_no_warning(path):
    assert not [output for output in outputs(path) if output.output_type == "error"]
    assert not [output.text for output in outputs(path) if output.get("name") == "stderr"]
    assert not re.search(r"\w+Warning:", printed(path))


@each_notebook
def test_notebook_names_no_folder_and_no_address_of_the_machine_it_ran_on(path):
    assert not ABSOLUTE_PATH.search(printed(path))
    assert not re.search(r" at 0x[0-9a-f]{6,}", printed(path))


@each_notebook
def test_notebook_holds_no_widget_that_needs_a_kernel(path):
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    assert not [output for output in outputs(path) if WIDGET_VIEW in output.get("data", {})]


@each_notebook
def test_notebook_runs_on_the_standard_kernel(path):
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@each_notebook
def test_notebook_has_pictures_and_is_small_enough_to_render_on_a_code_hosting_site(path):
    assert pictures(nbformat.read(path, as_version=4)) >= 1
    assert path.stat().st_size < 5e6
