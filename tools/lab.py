"""Open JupyterLab at the first lesson, on this machine only; further arguments go to JupyterLab."""

import os
import sys
from pathlib import Path

from jupyterlab.labapp import main

ROOT = Path(__file__).resolve().parent.parent


def has_screen() -> bool:
    """Tell whether a browser could open a window here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def options() -> list[str]:
    """Return JupyterLab's arguments for this machine."""
    arguments = [
        f"--ServerApp.root_dir={ROOT}",
        "--ServerApp.ip=127.0.0.1",
        "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if not has_screen():
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")
    return arguments


if __name__ == "__main__":
    print("Starting JupyterLab; open the address it prints if no browser opens. Ctrl-C twice ends it.", flush=True)
    sys.exit(main([*options(), *sys.argv[1:]]))
