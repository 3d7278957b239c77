"""pip, conda and Binder install the same packages, in the versions that the tests ran with."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
IN_CONDA = {"torch": "pytorch-cpu"}
ALL = ("lab", "cluster", "site", "bench", "dev")


def requirements(*extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines if not line.startswith(PROJECT["name"])]


def constraints():
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in pins}


def conda_packages():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return dict(line.split("=") for line in listed if "=" in line)


def test_every_package_we_ask_for_has_one_exact_version():
    exact = constraints()
    assert {requirement.name for requirement in requirements(*ALL)} <= set(exact)
    assert all(Version(version) for version in exact.values())


@pytest.mark.parametrize("requirement", requirements(*ALL), ids=str)
def test_the_exact_version_lies_in_the_range_of_pyproject(requirement):
    assert constraints()[requirement.name] in requirement.specifier


def test_constraints_name_no_package_of_one_platform_only():
    assert not [name for name in constraints() if re.match(r"nvidia|cuda|triton|pywin|appnope", name)]


def test_conda_installs_the_packages_of_pyproject_and_no_others():
    wanted = {IN_CONDA.get(requirement.name, requirement.name) for requirement in requirements("lab")}
    assert set(conda_packages()) - {"python"} == wanted


def test_conda_pins_the_minor_versions_that_the_tests_ran_with():
    exact, pinned = constraints(), conda_packages()
    for requirement in requirements("lab"):
        minor = ".".join(exact[requirement.name].split(".")[:2])
        assert pinned[IN_CONDA.get(requirement.name, requirement.name)] == minor


def test_conda_and_this_run_use_a_python_that_pyproject_allows():
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert f"{conda_packages()['python']}.0" in allowed
    assert ".".join(map(str, sys.version_info[:3])) in allowed


def test_binder_installs_the_same_environment():
    assert (ROOT / "binder/environment.yml").read_bytes() == (ROOT / "environment.yml").read_bytes()


@pytest.mark.parametrize("name", ["binder/postBuild", "binder/start", ".ci/run"])
def test_scripts_can_be_executed(name):
    assert os.access(ROOT / name, os.X_OK)


def run_with_failing_pip(script, folder):
    (folder / "pip").write_text("#!/bin/sh\nexit 3\n")
    (folder / "pip").chmod(0o755)
    return subprocess.run(
        [shutil.which("bash"), script], cwd=ROOT, env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    )


def test_the_build_on_binder_fails_where_the_install_fails(tmp_path):
    assert run_with_failing_pip("binder/postBuild", tmp_path).returncode == 3


def test_binder_starts_what_it_was_asked_to_start_with_two_threads():
    say = [sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.environ['OMP_NUM_THREADS']); sys.exit(3)"]
    command = [shutil.which("bash"), "binder/start", *say, "two words", "*"]
    outside = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    answer = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (3, "['two words', '*'] 2\n")


@pytest.mark.parametrize("target", sorted(set(re.search(r"\.PHONY: (.+)", MAKEFILE)[1].split()) - {"help"}))
def test_make_alone_lists_each_target(target):
    help_text = MAKEFILE[MAKEFILE.index("help:") : MAKEFILE.index("\n\n", MAKEFILE.index("help:"))]
    assert f"make {target} " in help_text
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_hooks_use_the_versions_that_the_tests_ran_with():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = [pin.split("==") for hook in hooks for pin in hook["additional_dependencies"]]
    assert pins and all(constraints()[name] == version for name, version in pins)


def test_the_workflow_tests_every_python_that_pyproject_allows():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    possible = [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}.0" in allowed]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == possible


def test_an_old_python_gets_one_sentence(tmp_path):
    as_if_old = "import sys, runpy; sys.version_info = (3, 8, 1); runpy.run_path('tools/install.py')"
    answer = subprocess.run([sys.executable, "-c", as_if_old], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.startswith("This course needs Python 3.11, 3.12 or 3.13")
    assert len(answer.stderr.strip().splitlines()) == 1
