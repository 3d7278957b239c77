"""Tests draw without a screen, run lessons at smoke scale, and share the cores where pytest runs several at a time."""

import os

import matplotlib
import pytest
from hypothesis import settings

matplotlib.use("agg")
os.environ["QSAL_SCALE"] = "smoke"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# These fork, limit the size of files and send themselves signals, none of which Windows knows.
collect_ignore = [] if os.name == "posix" else ["faults/test_files.py", "faults/test_interrupts.py"]

# The same examples on every machine, however slow, whichever files are collected.
settings.register_profile("qsal", deadline=None, derandomize=True)
settings.load_profile("qsal")


@pytest.fixture(autouse=True)
def _the_same_torch_for_every_test():
    """Random numbers that no earlier test has moved on, and as many threads afterwards as before."""
    import torch  # not above: it reads OMP_NUM_THREADS when it is imported

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
