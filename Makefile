# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
READY   = $(VENV)/.ready

.PHONY: env demo demo-train test test-slow test-majors faults lint benchmark clean

env: $(READY)

$(READY): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

# The shipped weights: a georeferenced cube made four times finer, then two scenes whose truth is known.
demo: $(READY)
	@echo "1 of 3: render the sample scenes (about 10 s)"
	rm -rf results/demo
	$(PY) data/make_samples.py --force
	@echo "2 of 3: super-resolve a GeoTIFF of a sensor with an MTF of 0.3, with a report (about 15 s)"
	$(PY) hsi_test.py --input data/sample/own/village_16m.tif --mtf 0.3 --output results/demo/village_4m.tif --report
	@echo "3 of 3: test against ground truth, with a report (about 30 s)"
	$(PY) hsi_test.py --data data/sample/natural/test data/sample/remote --out results/demo/test --report
	@echo "look at results/demo/village_4m_report/report.html and results/demo/test/report.html"

# The whole path: database, a short training, a test on scenes it has not seen.
demo-train: $(READY)
	@echo "1 of 3: build a database of the sample scenes (about 30 s)"
	rm -rf runs/demo results/demo-train
	$(PY) utility/lmdb_data.py --out data/lmdb/demo.lmdb --force
	@echo "2 of 3: train 200 steps (2 to 8 minutes)"
	$(PY) hsi_sr.py -a biqrnn_16_5 --data data/lmdb/demo.lmdb --recipe fast --iterations 200 --run-dir runs/demo
	@echo "3 of 3: test on scenes that the network has not seen (about 1 minute)"
	$(PY) hsi_test.py -r -rp runs/demo/best.pth --out results/demo-train --report
	@echo "look at runs/demo/training.png and results/demo-train/report.html"

# A process for each core, up to 8, of one thread each: they compile, wait and train at the same time.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal --durations 10

# What takes minutes or gigabytes: an ICVL-sized scene, large tiles, long spectra.
test-slow: $(READY)
	$(PY) -m pytest -m slow

# What uses lmdb and OpenCV, with the older majors that requirements.txt allows, each in a folder of its own: 10 minutes.
test-majors: $(READY)
	set -e; for one in lmdb==1.5.1 lmdb==1.8.1 lmdb==2.3.0 opencv-python-headless==4.10.0.84 opencv-python-headless==4.14.0.94; do \
	  older=$$(mktemp -d); trap 'rm -rf "$$older"' EXIT; echo "$$one"; \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$$older" "$$one"; \
	  PYTHONPATH="$$older" $(PY) -m pytest tests/test_lmdb.py tests/test_loader.py tests/test_leaks.py tests/test_rendering.py tests/test_samples.py; \
	  rm -rf "$$older"; done

# Kills, damaged files, files made to do harm, full disks: under 30 minutes; GROUP=mutations runs one of four groups.
faults: $(READY)
	$(PY) -W ignore tests/faults $(GROUP)

lint: $(READY)
	$(PY) -m ruff check --quiet .

benchmark: $(READY)
	$(PY) benchmarks/run.py

# Everything that the scripts made; not the environment.
clean:
	rm -rf runs results data/sample data/lmdb data/test .pytest_cache .ruff_cache .hypothesis
