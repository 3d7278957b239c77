import ast
import pathlib
import subprocess
import sys

HEAVY = ("torchvision", "captum", "onnx", "onnxruntime", "pandas", "scipy", "PIL", "ipywidgets", "matplotlib")
# A module may import those before it; neither a quantizer nor guidance knows any other part.
ORDER = ("quantization", "guided", "data", "evidence", "models", "checkpoints", "saliency", "metrics", "training")
ORDER += (
    "distillation",
    "machine",
    "study",
    "folding",
    "onnx_files",
    "export",
    "plots",
    "widgets",
    "checks",
    "grading",
)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_import_pulls_in_nothing_heavy_beside_torch():
    code = f"import sys, qsal_helpers; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_a_module_imports_none_that_stands_after_it_and_quantizers_and_guidance_know_nothing_of_each_other():
    import qsal_helpers

    folder = pathlib.Path(qsal_helpers.__file__).parent
    assert sorted(ORDER) == sorted(path.stem for path in folder.glob("[!_]*.py"))
    for place, name in enumerate(ORDER):
        lines = ast.parse((folder / f"{name}.py").read_text(encoding="utf8")).body
        imported = {line.module for line in lines if isinstance(line, ast.ImportFrom) and line.level}
        assert imported.isdisjoint(ORDER[max(place, 2) :] if place > 1 else ORDER), (name, imported)


def test_every_name_the_package_promises_is_there():
    import qsal_helpers

    assert [name for name in qsal_helpers.__all__ if not hasattr(qsal_helpers, name)] == []
    assert sorted(qsal_helpers.__all__) == qsal_helpers.__all__
