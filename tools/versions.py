"""Run the unit tests under other versions: ``python tools/versions.py --python python3.12`` or ``--oldest``.

Each set of versions has an environment of its own in build/versions, which takes some gigabytes the first time.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = ["torch==2.6.*", "torchvision==0.21.*"]  # the lower bounds of pyproject.toml
# Lessons, installs and other repositories' figures do not hang on these versions, or not alone.
LEFT_OUT = ["--ignore=tests/browser", "--ignore=tests/notebooks", "--ignore=tests/test_setup.py"]


def environment(python: str, oldest: bool) -> Path:
    """Return the interpreter of an environment with these versions, made where it is missing."""
    folder = ROOT / "build" / "versions" / (Path(python).name + ("-oldest" if oldest else ""))
    inside = folder / "bin" / "python"
    ready, asked_for = folder / "ready", ROOT / "pyproject.toml"
    if not ready.exists() or ready.stat().st_mtime < asked_for.stat().st_mtime:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        versions = OLDEST if oldest else ["-c", "constraints.txt"]
        command = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev]", *versions]
        subprocess.run(command, cwd=ROOT, check=True)
        ready.touch()
    return inside


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run the unit tests under other versions of Python or torch.")
    parser.add_argument("--python", default=sys.executable, help="an interpreter, such as python3.12")
    parser.add_argument("--oldest", action="store_true", help="with the oldest torch that pyproject.toml allows")
    parser.add_argument("tests", nargs="*", help="which tests; all unit tests by default")
    options = parser.parse_args()
    inside = environment(options.python, options.oldest)
    say = "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__, flush=True)"
    subprocess.run([inside, "-c", say], check=True)
    command = [inside, "-m", "pytest", *LEFT_OUT, *(options.tests or ["tests"])]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
