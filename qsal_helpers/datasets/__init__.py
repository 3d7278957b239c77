"""Small real data sets as idx .gz files; README.md tells their origin, `make.py` makes them again."""
