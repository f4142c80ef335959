# slmflow with the packages of requirements.lock, each held against its hash. docs/deployment.md says how to run it.
FROM python:3.11-slim-bookworm

# PyTorch's builds for the CPU. --build-arg PIP_EXTRA_INDEX_URL= takes those of PyPI, which are for CUDA.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /opt/slmflow
# First what the environment is made from: other changes do not install it again.
COPY requirements.lock ./
COPY envs/cuda/torch.lock envs/cuda/
COPY src src
COPY scripts/set_up.py scripts/
COPY scripts/lib/__init__.py scripts/lib/
COPY scripts/lib/core scripts/lib/core
COPY scripts/lib/sources scripts/lib/sources
RUN python -m venv .venv && .venv/bin/python scripts/set_up.py
COPY . .
# The demo's rows go into the project; any user may write there and into the working folder.
RUN install -d -m 1777 data/raw /work && useradd --uid 1000 --no-create-home slmflow

# Caches of libraries go where every user may write.
ENV HOME=/tmp PATH=/opt/slmflow/.venv/bin:$PATH
USER 1000
WORKDIR /work
ENTRYPOINT ["python", "/opt/slmflow/scripts/run.py", "--snakefile", "/opt/slmflow/Snakefile"]
