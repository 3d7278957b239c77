import subprocess
import sys

HEAVY = ("torchvision", "captum", "onnx", "onnxruntime", "pandas", "ipywidgets", "matplotlib")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_import_pulls_in_nothing_heavy_beside_torch():
    code = f"import sys, qsal_helpers; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_the_checkpoints_module_pulls_in_nothing_heavy_either():
    code = f"import sys, qsal_helpers.checkpoints; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_every_name_the_package_promises_is_there():
    import qsal_helpers

    assert [name for name in qsal_helpers.__all__ if not hasattr(qsal_helpers, name)] == []
    assert sorted(qsal_helpers.__all__) == qsal_helpers.__all__
