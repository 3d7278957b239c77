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


@pytest.mark.parametrize("command", PYTEST)
def test_each_pytest_command_finds_tests(command):
    files = [ROOT / file for file in re.findall(r"tests/\S+\.py", command)]
    found = re.findall(
        r"^ *def (test_\w+)", "\n".join(file.read_text(encoding="utf-8") for file in files), re.MULTILINE
    )
    wanted = re.search(r'-k (?:"([^"]+)"|(\S+))', command)
    parts = next(filter(None, wanted.groups())).split(" or ") if wanted else ["test_"]
    assert not [part for part in parts if not any(part in name for name in found)]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in PYTEST])
def test_each_other_command_exists(command):
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        script, *options = command.split()
        said = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True).stdout
        assert all(option in said for option in options if option.startswith("--"))
