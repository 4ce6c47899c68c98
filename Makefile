# make lab · make test · make quick · make lint · make setup · make lessons [LESSON=03] ·
# make claims [LESSON=03] [SEEDS=20] · make bench · make clean
#
# PYTHON    which Python makes .venv (default: the first of the list below that is 3.11 or newer)
# PIP_ARGS  more arguments for pip, e.g. the CPU wheels of torch on Linux; see "On a GPU" in README.md

CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
LESSON ?=
SEEDS ?= 20
WORKERS ?= 2
export PYTHONUTF8 := 1

# What `make quick` leaves out of the package's tests: what trains many steps, kills and resumes runs, draws panels and
# reports, starts commands or a browser. Measured with --durations: 1,600 of 2,600 tests stay, one minute of one core.
SLOW := tests/browser tests/cli tests/finetune tests/lab tests/trace/test_diagnosis.py tests/views/test_panels.py \
  tests/views/test_report.py tests/test_lesson_panels.py tests/test_lesson_build.py
# The notebooks that are compared; `make quick` takes two short ones.
NOTEBOOKS := notebooks

.PHONY: lab setup test quick lint doctor test-fast test-package test-notebooks test-kernels test-browser lessons claims bench clean
.NOTPARALLEL:

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks/00-start-here.ipynb

setup: $(STAMP)

# The stamp is written last: an interrupted set-up is taken up again, a finished one is never repeated.
$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "stabviz needs Python 3.11 or newer; none of '$(CANDIDATES)' is one." \
	  "Install it, or name it: make $(or $(MAKECMDGOALS),lab) PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stabviz needs Python 3.11 or newer; $(PYTHON) is not." ; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments." \
	  "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements.txt -e .
	@touch $(STAMP)

test: lint doctor test-package test-notebooks test-kernels test-browser

quick: NOTEBOOKS := notebooks/02-cross-entropy.ipynb notebooks/06-infonce.ipynb
quick: lint test-fast test-notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

doctor: $(STAMP)
	$(BIN)/python -m stabviz doctor

# One thread each: two workers with two threads each would wait for one another. The panels of all lessons are one
# file and many minutes: its tests are shared out one by one.
test-package: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --doctest-modules --ignore=tests/browser \
	  --ignore=tests/test_lesson_panels.py stabviz tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist load tests/test_lesson_panels.py

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile tests \
	  $(addprefix --ignore=,$(SLOW))

# Every stored output is compared, except where a cell says that it differs between machines.
test-notebooks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg \
	  $(NOTEBOOKS)

# The notebooks above ran with this machine's own kernels; one lesson, each commit another, with torch's plainest.
test-kernels: $(STAMP)
	$(BIN)/python -m lessons.claims --in-turn

# One at a time: these measure how soon a curve appears.
test-browser: $(STAMP)
	$(BIN)/python -m pytest tests/browser

lessons: $(STAMP)
	$(BIN)/python -m lessons.course
	$(BIN)/python -m lessons.build $(LESSON)

# Hours for all lessons: each is run once a set of seeds and twice a set of kernels. What is done is kept.
claims: $(STAMP)
	$(BIN)/python -m lessons.claims --lesson "$(LESSON)" --seeds $(SEEDS) --workers $(WORKERS)

bench: $(STAMP)
	$(BIN)/python -m tests.bench.run

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .mypy_cache test-results
