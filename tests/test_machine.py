"""The look at the machine says in words what is missing and what to do."""

import builtins
import hashlib
import importlib.metadata
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from packaging.specifiers import SpecifierSet

from qsal_helpers import data, machine

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


@pytest.fixture(autouse=True)
def no_full_data(tmp_path, monkeypatch):
    monkeypatch.setenv("QSAL_DATA", str(tmp_path))


def test_each_part_has_a_line_of_its_own(capsys):
    machine.check_machine()
    said = capsys.readouterr().out
    for part in ("Python", "torch and torchvision", "memory", "processor", "data", "full data", "sliders"):
        assert sum(line.startswith(part + "  ") or line.startswith(part + " ok") for line in said.splitlines()) == 1


def test_one_missing_part_makes_the_machine_unready(monkeypatch, capsys):
    monkeypatch.setattr(machine, "_free_memory", lambda: 0.5)
    assert not machine.check_machine()
    said = capsys.readouterr().out
    assert "MISSING" in said and "0.5 GiB free" in said and "close programs" in said
    assert "This machine is ready" not in said


def test_a_machine_whose_memory_cannot_be_read_is_not_refused(monkeypatch):
    monkeypatch.setattr(machine, "_free_memory", lambda: None)
    assert machine._memory()[0] is False


@pytest.fixture
def much_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))


def test_what_a_container_has_used_already_is_not_counted_as_free(monkeypatch, tmp_path, much_memory):
    (tmp_path / "memory.max").write_text(f"{2**31}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**29}\n")
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 0\nactive_file 7\n")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path)
    assert machine._free_memory() == 0.5


def test_files_that_a_container_has_read_and_can_let_go_count_as_free(monkeypatch, tmp_path, much_memory):
    (tmp_path / "memory.max").write_text(f"{2**31}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**29}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**29}\ninactive_file {2**30}\n")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path)
    assert machine._free_memory() == 1.5
    assert machine._memory() == (False, "1.5 GiB free")


def test_a_python_outside_the_range_is_told_which_ones_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    fault, sentence = machine._python()
    assert fault and "3.11, 3.12 or 3.13" in sentence


def test_a_torchvision_that_cannot_be_imported_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    fault, sentence = machine._torch()
    assert fault and "install torch and torchvision together" in sentence


def test_missing_sliders_are_told_what_to_install(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    fault, sentence = machine._sliders()
    assert fault and "pip install ipywidgets" in sentence


def test_damaged_data_are_named(monkeypatch):
    def load_data(name):
        raise machine.DataDamaged(f"{name} is altered")

    monkeypatch.setattr(machine, "load_data", load_data)
    assert machine._data() == (True, "fashion-mnist is altered")


def test_a_torchvision_whose_library_cannot_be_loaded_is_told_what_to_install(monkeypatch):
    real = builtins.__import__

    def importing(name, *rest):
        if name.startswith("torchvision"):
            raise OSError("[WinError 127] a procedure of _C.pyd\nwas not found")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    fault, sentence = machine._torch()
    assert fault and "install torch and torchvision together" in sentence and "\n" not in sentence


def test_full_sets_are_named_without_being_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "load_data", lambda *_: pytest.fail("it was loaded"))
    content = {"a": b"images", "b": b"labels"}
    checksums = {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}
    monkeypatch.setitem(data._FULL_FILES, "mnist", checksums)
    assert "none" in machine._full_data()[1]
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    assert machine._full_data() == (False, "mnist")


@pytest.mark.parametrize("minor", range(8, 17))
def test_the_machine_is_ready_for_exactly_the_pythons_that_pyproject_allows(minor, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, minor, 0))
    allowed = SpecifierSet(tomllib.loads(PYPROJECT.read_text(encoding="utf8"))["project"]["requires-python"])
    assert machine._python()[0] == (f"3.{minor}.0" not in allowed)


@pytest.mark.parametrize("limit", [2**40, "max"], ids=["a wide limit", "no limit"])
def test_a_container_with_a_wide_limit_has_what_the_machine_has_left(limit, monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("0\n")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    assert machine._free_memory() == 1.0


@pytest.mark.parametrize("missing", ["ipywidgets", "jupyterlab_widgets"])
def test_each_part_of_the_sliders_that_is_missing_is_told_by_its_name(missing, monkeypatch):
    def version(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    fault, sentence = machine._sliders()
    assert fault and f"pip install {missing}," in sentence
