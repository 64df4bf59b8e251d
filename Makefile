# The two commands of the README are `make demo` and `make test`; everything else is beside them.
PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python
# Colab runs Python 3.13; any other will do where there is none.
COLAB  ?= $(shell python3.13 -c 'print("python3.13")' 2>/dev/null || echo $(PYTHON))

.PHONY: demo test test-unit test-notebooks test-colab lab notebooks bench figures records reproduce zip clean

demo: $(VENV)/.ready            ## four methods, three seeds, on the embedded data: table and figures
	$(RUN) -m kdlib.compare --preset workshop --out runs/demo

test: test-unit test-notebooks  ## every test and every notebook

# Workers of pytest side by side, each on one core and up to 4 GB of memory; a file's tests, and a notebook's cells, in one.
WORKERS ?= auto
PYTEST   = $(RUN) -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile

# Without the notebooks' plug-in, whose import takes seconds in every worker.
UNITS    = --dist worksteal -p no:nbval

test-unit: $(VENV)/.ready
	$(RUN) -m ruff check .
	$(PYTEST) $(UNITS) tests

# Checked cells (# NBVAL_CHECK_OUTPUT) must print what is committed; all others must run.
NBVAL = KDLIB_PRESET=smoke JAX_PLATFORMS=cpu MPLBACKEND=agg $(PYTEST) -p no:python \
	    -p tests.nbval_kernels --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg

test-notebooks: $(VENV)/.ready
	$(NBVAL) notebooks

test-colab: VENV = .venv-colab
test-colab: .venv-colab/.ready  ## the quick tests and two notebooks on Colab's versions
	$(PYTEST) $(UNITS) -m "not slow and not formula" tests
	$(NBVAL) notebooks/00_quickstart.ipynb notebooks/08_scaling_up.ipynb

lab: $(VENV)/.ready             ## open the notebooks
	$(VENV)/bin/jupyter lab notebooks

notebooks: $(VENV)/.ready       ## run all notebooks afresh, in place (minutes each)
	$(VENV)/bin/jupyter nbconvert --to notebook --execute --coalesce-streams --inplace notebooks/*.ipynb
	$(RUN) notebooks/prepare.py
	$(RUN) -m figures.draw

bench: $(VENV)/.ready           ## kdlib against PyTorch, in turns; a record in benchmarks/results
	$(RUN) -c "import torch" 2> /dev/null || $(RUN) -m pip install -q -e ".[bench]"
	$(RUN) -m benchmarks.speed

figures: $(VENV)/.ready         ## draw published tables, figures and README's numbers from their records; nothing is trained
	$(RUN) -m figures.draw

AGAIN = runs/records
records: $(VENV)/.ready         ## measure again what README shows of the embedded set: hours on a CPU
	$(RUN) -m kdlib.compare --preset workshop --seeds 10 --out $(AGAIN)/shapes --figures $(AGAIN)/figures/shapes
	$(RUN) -m kdlib.compare --preset workshop --seeds 10 --out $(AGAIN)/labels --figures $(AGAIN)/figures/labels \
	    --methods plain SoftLogits "AT(beta=100)" --labels 256 128 64 32
	$(RUN) -m kdlib.compare --preset workshop --seeds 5 --out $(AGAIN)/methods --figures "$(AGAIN)/figures/{table}" \
	    --table offline online self
	$(RUN) -m kdlib.compare --preset workshop --seeds 10 --out $(AGAIN)/controls --figures $(AGAIN)/figures/controls \
	    --methods plain SoftLogits figures/controls.py:Shuffled figures/controls.py:Alike "SoftLogits(alpha=1.0)"
	for both in "1024 20" "4096 5"; do set -- $$both; $(RUN) -m kdlib.compare --preset workshop --seeds 10 \
	    --labels $$1 --epochs $$2 --methods plain "SoftLogits(alpha=1.0)" \
	    --out $(AGAIN)/unlabelled --figures $(AGAIN)/figures/unlabelled || exit; done
	cp -R $(AGAIN)/figures/. figures
	$(RUN) -m figures.unseen
	$(RUN) -m figures.which_teacher
	$(RUN) -m figures.draws
	$(RUN) -m figures.watch
	$(MAKE) figures

# Teacher, then every table, at full scale: hours on a recent GPU, so in pieces. Each call stops after
# MINUTES, with an error if it isn't done (kdlib.compare's exit status 75), and the next one goes on.
# PRESET=reduced SEEDS=3 is the same on a CPU, in hours: fewer layers, labels and epochs.
# FLAGS are further ones of kdlib.compare, like --bf16. A limit on the command has to be some minutes
# longer than MINUTES, which leave out what follows an epoch: tests, and compiling the next method.
MINUTES ?= 1e6
FLAGS   ?=
PRESET  ?= full
SEEDS   ?= 5
DATASET ?= cifar10
TABLES  ?= demo offline online self
# README shows what is in figures/; of other data than CIFAR-10 that is not to be.
FIGURES ?= $(if $(filter cifar10 CIFAR10,$(DATASET)),figures/$(PRESET),runs/$(PRESET)/figures)
reproduce: $(VENV)/.ready       ## teacher and every method on CIFAR-10, 200 epochs, five seeds
	$(RUN) -m kdlib.compare --preset $(PRESET) --dataset "$(DATASET)" --seeds $(SEEDS) \
	    --time_budget $(MINUTES) --train_teacher runs/$(PRESET)/teacher --table $(TABLES) \
	    --out runs/$(PRESET) --figures "$(FIGURES)/{table}" $(FLAGS)
	$(RUN) -m figures.draw

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --upgrade pip
	$(RUN) -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

# What the package needs apart from the package: both environments can be filled at once (.ci/run),
# but two builds of the package at once would write the same files.
NEEDS = import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *p["optional-dependencies"]["test"], sep="\n")

.venv-colab/.needs: pyproject.toml tests/colab.txt
	$(COLAB) -m venv .venv-colab
	.venv-colab/bin/python -m pip install -q --upgrade pip
	.venv-colab/bin/python -c '$(NEEDS)' > $@
	.venv-colab/bin/python -m pip install -q -c tests/colab.txt -r $@

.venv-colab/.ready: .venv-colab/.needs
	.venv-colab/bin/python -m pip install -q --no-deps -e .
	touch $@

.DELETE_ON_ERROR:

zip:                            ## what Colab is given: the committed files, in one archive
	git archive --format=zip --prefix=kd-cookbook/ -o kd-cookbook.zip HEAD

clean:
	rm -rf $(VENV) .venv-colab runs
