# make run    the workflow on config.yaml       make run ARGS="--configfile examples/tones.yaml"
# make test   every test                        make check   formatters, linters, types
PYTHON ?= python3.11
BIN = .venv/bin
ARGS ?=

.PHONY: run test check schema envs clean

run: .venv/installed
	@$(BIN)/python scripts/run.py $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/mypy
	$(BIN)/snakemake --lint

# A broken installation leaves no stamp, so the next make mends it.
.venv/installed: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

# Files that are made from other files of the project; tests hold them equal.
generated: .venv/installed
	$(BIN)/python scripts/generate.py

clean:
	rm -rf results results-* work .snakemake
