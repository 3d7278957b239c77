"""Every example in the package's docstrings runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import qsal_helpers

MODULES = ["qsal_helpers"] + [
    module.name
    for module in pkgutil.walk_packages(qsal_helpers.__path__, "qsal_helpers.")
    if "__main__" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") == 1 and name != "qsal_helpers.datasets"])
def test_each_module_shows_an_example(name):
    tests = doctest.DocTestFinder().find(importlib.import_module(name))
    assert any(test.examples for test in tests)
