"""Write the files that follow from others: environments from the lock, schema and reference from the config model.

With `--check` nothing is written: exits 1 when a file differs from what would be written.
"""

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from lib.config.reference import render_reference
from lib.config.schema import build_json_schema
from lib.olive.reference import replace_tables
from lib.sources.lock_file import TORCH_CPU, Entry, read_lock
from lib.workflow.helpers import read_locked_versions

ROOT = Path(__file__).resolve().parent.parent

# What the scripts of a group import; everything else follows from what these packages require.
_PYPI = ["packaging", "requests", "truststore", "urllib3"]
_TRACKERS = ["mlflow-skinny", "tensorboardx"]
_AZURE = ["azure-ai-ml", "azure-identity", "azure-keyvault-secrets", "azure-storage-blob"]  # sources, progress
GROUPS = {
    "data": [*_AZURE, *_PYPI, "datasets", "huggingface-hub", "jinja2", "numpy", "openpyxl", "tokenizers", "xxhash"],
    "train": [
        *_AZURE,
        *_PYPI,
        *_TRACKERS,
        "accelerate",
        "bitsandbytes",
        "gguf",
        "huggingface-hub",
        "jinja2",
        "peft",
        "sacrebleu",
        "scipy",
        "torch",
        "transformers",
    ],
    "onnx": [
        "auto-round",
        "jinja2",
        "onnx",
        "onnx-ir",
        "onnxruntime-genai",
        "sacrebleu",
        "scipy",
        "torch",
        "transformers",
    ],
    "report": [
        *_TRACKERS,
        "azure-identity",
        "huggingface-hub",
        "jinja2",
        "sacrebleu",
        "scikit-learn",
        "scipy",
        "tokenizers",
    ],
}
# A job of Azure Machine Learning is one environment for whatever rule it runs, Snakemake and the storage included.
GROUPS["job"] = [
    *dict.fromkeys(name for group in GROUPS.values() for name in group),
    "snakemake",
    "snakemake-storage-plugin-azure",
]
# Beside the workflow: no rule runs in it.
GROUPS["serve"] = [
    *("fastapi", "jinja2", "numpy", "onnx", "onnxruntime", "onnxruntime-genai", "prometheus_client", "tokenizers"),
    "uvicorn",
]
# The Python of the environments, whichever this runs under.
_PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's public page of CPU builds

SDISTS = {"antlr4-python3-runtime", "connection-pool"}  # of the lock, as `make lock` names them: they have no wheel

# Where each environment stands, and whether it is one of CUDA builds, for rules that are given a GPU.
ENVIRONMENTS = {
    **{f"envs/{group}.yaml": (group, False) for group in ("data", "train", "onnx", "report", "serve")},
    **{f"envs/cuda/{group}.yaml": (group, True) for group in ("train", "onnx")},
    "profiles/azureml/conda.yaml": ("job", False),
    "profiles/azureml/conda-cuda.yaml": ("job", True),
}
# What stands in these instead of a package of the lock, which is of a machine without a GPU: the entry of another lock.
CUDA_BUILDS = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-genai": "onnxruntime-genai-cuda"}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="only compare")
    check = arguments.parse_args().check
    stale = [path for path, text in render_files().items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}", file=sys.stderr)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(render_files()[path])
    return 1 if check and stale else 0


def render_files() -> dict[Path, str]:
    """Return contents by path."""
    locked = read_locked_versions(ROOT / "requirements.lock")
    files = {
        ROOT / path: render_environment(
            (list_cuda_pins if cuda else list_cpu_pins)(collect_dependencies(GROUPS[group], locked))
        )
        for path, (group, cuda) in ENVIRONMENTS.items()
    }
    files[ROOT / "examples" / "config.schema.json"] = json.dumps(build_json_schema(), indent=2) + "\n"
    files[ROOT / "docs" / "configuration.md"] = render_reference(build_json_schema())
    olive = ROOT / "docs" / "olive.md"
    files[olive] = replace_tables(olive.read_text(encoding="utf-8"))
    return files


def render_environment(lines: list[str]) -> str:
    """Return a conda environment: python and pip from conda, every package pinned and hashed by a line for pip."""
    return "\n".join(
        [
            "# Made from requirements.lock by `make generated`; do not edit.",
            "channels:",
            "  - conda-forge",
            "dependencies:",
            f"  - python={_PYTHON['python_version']}",
            "  - pip",
            "  - pip:",
            *(f"      - {line}" for line in ["--require-hashes", *lines]),
            "",
        ]
    )


def list_cpu_pins(names: set[str]) -> list[str]:
    """Return pip's lines: the packages of the lock; torch from PyTorch's page, as PyPI's for Linux is for CUDA."""
    lock, cpu = parse_hashed_pins("requirements.lock"), parse_hashed_pins(TORCH_CPU)
    pins = [_as_line(lock[name]) for name in sorted(names - {"torch"})]
    if "torch" in names:
        linux = _as_line(cpu["torch"], marker="sys_platform == 'linux'")
        other = _as_line(find_pypi_torch(), marker="sys_platform != 'linux'")
        pins = [f"--extra-index-url {TORCH_INDEX}", *pins, linux, other]
    return [*_wheels_alone(names), *pins]


def list_cuda_pins(names: set[str]) -> list[str]:
    """Return lines for pip: the packages of the lock, in their CUDA builds where these are packages of their own."""
    lock, builds = parse_hashed_pins("requirements.lock"), parse_hashed_pins("envs/cuda/onnx.lock")
    lock |= {cpu: builds[cuda] for cpu, cuda in CUDA_BUILDS.items()} | {"torch": find_pypi_torch()}
    libraries = parse_hashed_pins("envs/cuda/torch.lock").values()
    return [*_wheels_alone(names), *sorted(map(_as_line, [*(lock[name] for name in names), *libraries]))]


def find_pypi_torch() -> Entry:
    """Return the entry of PyPI's own torch, which for Linux is the CUDA build.

    `===` takes it even where pip is told of CPU builds, whose `2.13.0+cpu` would count as newer.
    """
    torch, cpu = parse_hashed_pins("requirements.lock")["torch"], parse_hashed_pins(TORCH_CPU)["torch"]
    return torch._replace(
        line=torch.line.replace("==", "==="), hashes=[one for one in torch.hashes if one not in cpu.hashes]
    )


def parse_hashed_pins(lock: str) -> dict[str, Entry]:
    """Return the entries of a lock file by name."""
    _, entries = read_lock((ROOT / lock).read_text(encoding="utf-8"), lock)
    names = [entry.name.lower().replace("_", "-") for entry in entries]
    lines = (entry.line.replace(entry.name, name, 1) for entry, name in zip(entries, names, strict=True))
    return {name: entry._replace(line=line) for name, entry, line in zip(names, entries, lines, strict=True)}


def _as_line(entry: Entry, marker: str = "") -> str:
    return " ".join(
        [entry.line + (f" ; {marker}" if marker else ""), *(f"--hash=sha256:{one}" for one in entry.hashes)]
    )


def _wheels_alone(names: set[str]) -> list[str]:
    """Return lines that forbid pip to build any package that has a wheel: what a build needs comes without a hash."""
    return ['"--only-binary=:all:"', *(f"--no-binary {name}" for name in sorted(names & SDISTS))]


def collect_dependencies(roots: list[str], locked: dict[str, str]) -> set[str]:
    """Return the packages of the lock that `roots` need, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found or name not in locked:
            continue
        if version(name).partition("+")[0] != locked[name]:
            raise SystemExit(f"error: {name} is {version(name)} here, the lock says {locked[name]}: run make again")
        found.add(name)
        waiting += [need.name for need in map(Requirement, requires(name) or []) if _applies(need)]
    return found


def _applies(need: Requirement) -> bool:
    try:
        version(need.name)
    except PackageNotFoundError:
        return False
    return need.marker is None or need.marker.evaluate({"extra": "", **_PYTHON})


if __name__ == "__main__":
    sys.exit(main())
