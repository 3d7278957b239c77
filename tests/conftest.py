"""Tests draw without a screen, run lessons at smoke scale, and share the cores where pytest runs several at a time."""

import os

import matplotlib

matplotlib.use("agg")
os.environ["QSAL_SCALE"] = "smoke"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
