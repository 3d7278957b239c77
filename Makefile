SHELL := /bin/sh
SCALE ?= class
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && exit; done; echo python3)
RUN := .venv/bin/python

.PHONY: help lab course test soak notebooks site lint clean

help:
	@echo 'make lab                       open the course in JupyterLab (ARGS="--port 8899" for more options)'
	@echo 'make course SCALE=class        run every lesson without a screen into build/course (smoke, class or full)'
	@echo 'make test                      lint and the whole test suite (TESTS=tests/test_data.py for a part)'
	@echo 'make soak                      the long sweeps of faults, and the unit tests under the oldest torch (hours)'
	@echo 'make notebooks LESSON=02       execute edited lessons into notebooks/ (LESSON for one, FORCE=1 for all)'
	@echo 'make site                      the lessons, the guide and the reference as a web site in build/site'
	@echo 'make lint                      check style and that lessons and their sources are in step'
	@echo 'make clean                     remove what the other targets made, .venv included'
	@echo 'PYTHON=python3.12 in front picks the Python (3.11 to 3.13) that .venv is made with.'

.venv/lab.stamp .venv/site.stamp .venv/dev.stamp: .venv/%.stamp: pyproject.toml constraints.txt tools/install.py
	@$(PYTHON) tools/install.py $*

lab: .venv/lab.stamp
	@$(RUN) tools/lab.py $(ARGS)

course: .venv/lab.stamp
	@$(RUN) tools/course.py --scale $(SCALE)

notebooks: .venv/lab.stamp
	@$(RUN) tools/lessons.py $(if $(LESSON),--lesson $(LESSON)) $(if $(FORCE),--force)

site: .venv/site.stamp
	@$(RUN) tools/website.py

lint: .venv/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) tools/lessons.py --check

test: .venv/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -n logical --maxprocesses 4 --dist worksteal $(TESTS)

soak: .venv/dev.stamp
	$(RUN) -m pytest -m soak -rA -n logical --maxprocesses 4 --dist worksteal $(TESTS)
	$(RUN) tools/versions.py --oldest

clean:
	rm -rf build .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
