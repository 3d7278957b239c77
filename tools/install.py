"""Make .venv and install the course into it: ``python tools/install.py lab``, ``site`` or ``dev``.

Python 3.6 must be able to read this file, so that it can say in a sentence that it is too old.
"""

import os
import shutil
import subprocess
import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        f"This course needs Python 3.11, 3.12 or 3.13, and {sys.executable} is {sys.version.split()[0]}: "
        "name another one, for example make lab PYTHON=python3.12"
    )

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")

INCLUDED = {"lab": ["lab"], "site": ["lab", "site"], "dev": ["lab", "site", "dev"]}  # what comes with each


def works(python: str) -> bool:
    """Tell whether `python` starts, is of this Python's version and has pip."""
    question = "import sys, pip; print(sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return answer.stdout.strip() == str(tuple(sys.version_info[:2]))


def install(extra: str) -> None:
    """Install the package with `extra`, and leave a stamp that tells make so."""
    if not works(PYTHON):
        print(f"Making .venv with Python {sys.version.split()[0]}", flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        if subprocess.run([sys.executable, "-m", "venv", VENV], check=False).returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit("Python could not make .venv; the lines above say why (on Debian: apt install python3-venv).")
    print(f"Installing the course with its {extra!r} packages; the first time takes minutes.", flush=True)
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    if subprocess.run([*command, "-c", "constraints.txt", "-e", f".[{extra}]"], cwd=ROOT, check=False).returncode:
        sys.exit("pip could not install the course; its last lines above say why.")
    for name in INCLUDED[extra]:
        with open(os.path.join(VENV, name + ".stamp"), "w"):
            pass


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in INCLUDED:
        sys.exit(
            "Say what to install: python tools/install.py lab (to learn), site or dev (to change and test the course)."
        )
    install(sys.argv[1])
