"""Every command in tests/README.md exists and finds tests."""

import re
import subprocess
import sys

import pytest
from lessons import ROOT

COMMANDS = sorted(set(re.findall(r"\| `((?:pytest|make|tools/)[^`]*)` \|", (ROOT / "tests/README.md").read_text())))
PYTEST = [command for command in COMMANDS if command.startswith("pytest")]


def test_the_table_names_commands_of_each_kind():
    assert len(PYTEST) > 20 and {command.split()[0] for command in COMMANDS} >= {"pytest", "make", "tools/versions.py"}


@pytest.fixture(scope="module")
def collected():
    """All tests, soak or not: their ids without the folders' parameters."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "soak or not soak", "tests"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("command", PYTEST)
def test_each_pytest_command_finds_tests(command, collected):
    files = re.findall(r"tests/\S+\.py", command)
    assert all((ROOT / file).exists() for file in files)
    wanted = re.search(r'-k (?:"([^"]+)"|(\S+))', command)
    parts = re.split(r" or ", next(filter(None, wanted.groups()))) if wanted else [""]
    for part in parts:
        assert [test for test in collected if test.startswith(tuple(files)) and part.lower() in test.lower()], part


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in PYTEST])
def test_each_other_command_exists(command):
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        script, *options = command.split()
        said = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True).stdout
        assert all(option in said for option in options if option.startswith("--"))
