"""What this machine offers the course, in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

from .data import DataDamaged, DataNotFound, _check_full, _full_folder, _import_torchvision, load_data

MEMORY_NEEDED = 1.5  # GiB, for a lesson at class scale


def check_machine() -> bool:
    """Print one line for each thing the course needs, and what to do about those that are missing.

    Returns
    -------
    bool
        Whether every lesson can run here.

    Examples
    --------
    >>> check_machine() in (True, False)
    Python...
    True
    """
    tests = {
        "Python": _python,
        "torch and torchvision": _torch,
        "memory": _memory,
        "processor": _processor,
        "data": _data,
        "full data": _full_data,
        "sliders": _sliders,
    }
    ready = True
    for name, test in tests.items():
        fault, sentence = test()
        ready = ready and not fault
        print(f"{name:22}{'MISSING' if fault else 'ok':9}{sentence}")
    print(
        "\nThis machine is ready." if ready else "\nMend what is MISSING, restart the kernel, and run this cell again."
    )
    return ready


def _python() -> tuple[bool, str]:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return False, version
    return True, f"this is {version}; the course needs Python 3.11, 3.12 or 3.13: start the kernel of .venv"


def _torch() -> tuple[bool, str]:
    try:
        torchvision = _import_torchvision()
    except ImportError as error:
        return True, str(error)
    device = "a GPU, which the course uses by itself" if torch.cuda.is_available() else "the CPU, which is enough"
    return False, f"torch {torch.__version__}, torchvision {torchvision.__version__}, on {device}"


def _memory() -> tuple[bool, str]:
    free = _free_memory()
    if free is None:
        return False, f"unknown; a lesson needs up to {MEMORY_NEEDED:g} GiB"
    if free < MEMORY_NEEDED:
        return (
            True,
            f"{free:.1f} GiB free, a lesson needs up to {MEMORY_NEEDED:g}: close programs, or use SCALE = 'smoke'",
        )
    return False, f"{free:.1f} GiB free"


def _free_memory() -> float | None:
    """Return the free memory in GiB, a container's own limit heeded; None where it cannot be read."""
    try:
        import psutil
    except ImportError:
        return None
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()).isdigit():
        # Files that were read stay in memory and count as used, but go as soon as it is needed.
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        free = min(free, int(limit) - int((group / "memory.current").read_text()) + int(kept))
    return free / 2**30


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[bool, str]:
    cores = _cores()
    if cores == 1:
        return False, "1 core: lessons take about twice the minutes they name; SCALE = 'smoke' is quick"
    return False, f"{cores} cores"


def _data() -> tuple[bool, str]:
    try:
        sets = [load_data(name) for name in ("fashion-mnist", "mnist")]
    except (DataNotFound, DataDamaged) as error:
        return True, str(error)
    return False, ", ".join(f"{data.name}: {len(data.train)} + {len(data.test)} images" for data in sets)


def _full_data() -> tuple[bool, str]:
    found = []
    for name in ("fashion-mnist", "mnist", "cifar10"):
        try:
            _check_full(name, _full_folder())
        except (DataNotFound, DataDamaged, OSError):
            continue
        found.append(name)
    if found:
        return False, f"{', '.join(found)}"
    return False, "none, and none is needed: only SCALE = 'full' asks for it (load_data(..., download=True))"


def _sliders() -> tuple[bool, str]:
    found = {}
    for name in ("ipywidgets", "jupyterlab_widgets"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return True, f"{name} is not installed here: pip install {name}, then restart Jupyter"
    return False, ", ".join(f"{name} {version}" for name, version in found.items())
