# make run    the workflow on config.yaml       make run ARGS="--configfile examples/tones.yaml"
# make plan   what that run would do and take, before it does: make plan ARGS="--configfile examples/tones.yaml"
# make test   every test but the next ones      make check   formatters, linters, types
# make clean-work DAYS=30   old progress and base models    make clean-results, clean   say what they remove
# make test-slow   tests that take half a minute and more each, of what shorter ones touch too
# make test-conda    the conda environments built, and every rule run in its own
# make test-faults   each rule disturbed in each way, each parser given hostile files, one to two hours
# make fuzz   the parsers with what hypothesis makes up; fuzz-atheris ARGS="rows.csv -max_total_time=60" with atheris
# make browser   installs Chromium, which the tests of the report open it with
# make test-slurm   installs Slurm and runs the workflow through it; test-slurm-slow: what takes minutes (both as root)
# make lock   the hashes of the lock files, after a version in them was changed by hand; then make generated
# make test-gguf   tokenizers of GGUF files against llama.cpp, which it builds first (about 4 minutes)
# make test-trl   which tokens of a conversation are trained, against TRL's assistant-only loss (1 minute)
# make test-models   every family of base models from rows to predict.py; models: the same, and what came of it is written down
# make test-clients   openai-python, litellm and curl against the server (1 minute)
# make test-tracking   trainings and a run that tell a real MLflow server their numbers, in an environment of its own (5 minutes)
# make test-foundry   a packaged model in Foundry Local's SDK, offline, in an environment of its own (1 minute)
# make test-container   hadolint on the Dockerfile
# make test-azure   the workflow through Azure Machine Learning and Azure storage, both on loopback; installs Azurite
# make test-gpu PYTHON=python3.12   agreement, speed and memory on this machine's GPUs, in 8 minutes; no .venv is needed
# make test-python PYTHON=python3.13   the tests that need no torch under another Python, in .venv-python3.13
# The Python of .venv: 3.11, 3.12 or 3.13, the first that is here unless it is given. Another one makes .venv anew.
PYTHON ?=
BIN = .venv/bin
OTHER = .venv-$(or $(notdir $(PYTHON)),python)
# FORCE if PYTHON is given and the environment in this folder has another version.
differs = $(if $(PYTHON),$(shell sh scripts/make_venv.sh --fits $(1) "$(PYTHON)" || echo FORCE))
# As they were typed, in recipes by $(value ...): make would read a $ in the name of a file.
ARGS ?=
DAYS ?= 30
unexport ARGS DAYS

.PHONY: FORCE run plan control test models test-models test-slow test-python test-gguf test-trl test-clients test-tracking test-foundry test-container test-azure test-conda test-faults test-slurm test-slurm-slow test-gpu check azurite browser slurm \
  fuzz fuzz-atheris lock generated clean clean-results clean-work

run: .venv/installed
	@$(BIN)/python scripts/run.py $(value ARGS)

plan: .venv/installed
	@$(BIN)/python scripts/check.py $(value ARGS)

# Shuffled labels, trained and scored the same way: above the commonest label's rate something leaks.
control: .venv/installed
	@$(BIN)/python scripts/permuted_label_control.py $(value ARGS)

test: .venv/installed
	$(BIN)/python -m pytest $(value ARGS)

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow $(value ARGS)

# A file each: two families at once.
test-models: .venv/installed
	$(BIN)/python -m pytest -m "models or not models" --dist load tests/models/test_families.py $(value ARGS)

models: .venv/installed
	RECORD_OUTCOMES=1 $(BIN)/python -m pytest -m "models or not models" --dist load tests/models/test_families.py $(value ARGS)
	PYTHONPATH=scripts:tests $(BIN)/python tests/models/models_page.py

test-python: $(OTHER)/installed
	$(OTHER)/bin/python -m pytest -m "not slow and not workflow and not end_to_end and not slurm and not slurm_slow and not conda \
	  and not azure and not models" $(value ARGS)

test-gguf: .venv/installed .llama-cpp/installed
	PYTHONPATH=.llama-cpp:scripts $(BIN)/python tests/gguf_against_llama_cpp.py

# Its tokenizers are wanted, not its kernels for the CPU nor its image models.
.llama-cpp/installed: tests/llama-cpp.lock
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CPU=OFF -DLLAVA_BUILD=OFF" $(BIN)/python -m pip install --quiet \
	  --disable-pip-version-check --no-deps --no-binary llama-cpp-python --require-hashes --target .llama-cpp \
	  -r tests/llama-cpp.lock
	touch $@

test-trl: .venv/installed .trl/installed
	PYTHONPATH=.trl:scripts:tests $(BIN)/python tests/conversations_against_trl.py

.trl/installed: tests/trl.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target .trl -r tests/trl.lock
	touch $@

test-clients: .venv/installed .clients/installed
	PYTHONPATH=.clients:scripts:tests $(BIN)/python tests/clients_against_server.py

.clients/installed: tests/clients.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target .clients -r tests/clients.lock
	touch $@

test-tracking: .venv/installed .tracking/installed
	PYTHONPATH=scripts:tests $(BIN)/python tests/tracking_against_mlflow.py --mlflow .tracking/bin/mlflow

.tracking/installed: tests/tracking.lock
	$(BIN)/python -m venv --clear .tracking
	.tracking/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

test-foundry: .venv/installed .foundry/installed
	PYTHONPATH=scripts:tests $(BIN)/python tests/foundry_local_against_predict.py --python .foundry/bin/python

.foundry/installed: tests/foundry.lock
	$(BIN)/python -m venv --clear .foundry
	.foundry/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

test-container: .venv/installed .hadolint/installed
	.hadolint/bin/hadolint Dockerfile

.hadolint/installed: tests/hadolint.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target .hadolint -r $<
	touch $@

test-conda: .venv/installed
	$(BIN)/python -m pytest -m conda tests/conda $(value ARGS)

test-faults: .venv/installed
	$(BIN)/python tests/faults/campaign.py --output tests/faults/table.md $(value ARGS)

# Beside the environment, which needs neither.
fuzz: .venv/installed .fuzz/hypothesis
	PYTHONPATH=.fuzz/hypothesis $(BIN)/python -m pytest --numprocesses 2 --dist load tests/fuzz/fuzz_with_hypothesis.py $(value ARGS)

fuzz-atheris: .venv/installed .fuzz/atheris
	PYTHONPATH=.fuzz/atheris $(BIN)/python tests/fuzz/fuzz_with_atheris.py $(value ARGS)

.fuzz/%: tests/fuzz/%.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --target $@ -r $<

test-slurm: .venv/installed slurm
	$(BIN)/python -m pytest tests/slurm -m slurm --numprocesses 0 $(value ARGS)

test-slurm-slow: .venv/installed slurm
	$(BIN)/python -m pytest tests/slurm -m slurm_slow --numprocesses 0 $(value ARGS)

# One more than there are cores: they mostly wait for jobs.
test-azure: .venv/installed azurite
	$(BIN)/python -m pytest tests/on_azure -m azure --numprocesses 3 $(value ARGS)

test-gpu:
	@$(or $(PYTHON),$(wildcard $(BIN)/python),python3) benchmarks/gpu.py $(value ARGS)

# Microsoft's emulator of Azure storage, from npm: each package by its hash, and no script of one runs.
azurite: .azurite/installed

.azurite/installed: tests/on_azure/package-lock.json
	@command -v npm >/dev/null || \
	  { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && \
	    $$sudo apt-get install -y -qq --no-install-recommends nodejs npm; }
	mkdir -p .azurite
	cp tests/on_azure/package.json tests/on_azure/package-lock.json .azurite
	npm ci --prefix .azurite --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

# Controller, node daemon and commands; the tests start them, the system does not.
slurm:
	@command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null || \
	  { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && \
	    $$sudo apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client; }

# Chromium and a font, for tests/report/test_browser.py.
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && \
	    $$sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m snakefmt --check Snakefile rules
	$(BIN)/python -m mypy
	$(BIN)/python -m snakemake --lint

# A broken installation leaves no stamp, so the next make mends it.
.venv/installed: requirements.lock envs/cuda/torch.lock src/pyproject.toml $(call differs,.venv)
	@sh scripts/make_venv.sh .venv "$(PYTHON)"
	$(BIN)/python scripts/set_up.py
	touch $@

$(OTHER)/installed: requirements.lock src/pyproject.toml $(call differs,$(OTHER))
	@sh scripts/make_venv.sh $(OTHER) "$(PYTHON)"
	$(OTHER)/bin/python scripts/set_up.py --without-torch
	touch $@

lock: .venv/installed
	$(BIN)/python scripts/lock_hashes.py

# Files that are made from other files of the project; tests hold them equal.
generated: .venv/installed
	$(BIN)/python scripts/render_generated.py
	$(BIN)/python tests/resource_table.py

clean-work: .venv/installed
	@$(BIN)/python scripts/clean.py work --days $(value DAYS)

clean-results: .venv/installed
	@$(BIN)/python scripts/clean.py results

clean: .venv/installed
	@$(BIN)/python scripts/clean.py all
