"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks.NAME` runs one."""

from pathlib import Path

for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    first = path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
    print(f"python -m benchmarks.{path.stem:16} {first}")
