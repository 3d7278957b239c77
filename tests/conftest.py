"""Tests draw without a screen and run lessons at smoke scale."""

import os

import matplotlib

matplotlib.use("agg")
os.environ["QSAL_SCALE"] = "smoke"
