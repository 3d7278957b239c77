"""Tests draw without a screen, run lessons at smoke scale, and share the cores where pytest runs several at a time."""

import os

import matplotlib
from hypothesis import settings

matplotlib.use("agg")
os.environ["QSAL_SCALE"] = "smoke"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# The same examples on every machine, however slow, whichever files are collected.
settings.register_profile("qsal", deadline=None, derandomize=True)
settings.load_profile("qsal")
