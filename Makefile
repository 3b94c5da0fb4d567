# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
READY   = $(VENV)/.ready

.PHONY: env demo test test-slow lint benchmark clean

env: $(READY)

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Sample scenes, database, a short training, a test on scenes it has not seen, figures.
demo: $(READY)
	rm -rf runs/demo results/demo
	$(PY) utility/lmdb_data.py --out data/lmdb/demo.lmdb --force
	$(PY) hsi_sr.py -a biqrnn_16_5 --data data/lmdb/demo.lmdb --recipe fast --iterations 200 --run-dir runs/demo
	$(PY) hsi_test.py -r -rp runs/demo/best.pth --out results/demo --report
	@echo "look at results/demo/*.png and results/demo/report.html"

test: $(READY) lint
	$(PY) -m pytest

# What takes minutes or gigabytes: an ICVL-sized scene, large tiles, long spectra.
test-slow: $(READY)
	$(PY) -m pytest -m slow

lint: $(READY)
	$(PY) -m ruff check --quiet .

benchmark: $(READY)
	$(PY) benchmarks/run.py

# Everything that the scripts made; not the environment.
clean:
	rm -rf runs results data/sample data/lmdb data/test .pytest_cache .ruff_cache .hypothesis
