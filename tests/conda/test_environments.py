"""The real environments, built by Snakemake and used by every rule; the CUDA ones resolved.

python and pip come from a channel on disk instead of conda-forge, all other packages from the index, as for anyone.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from local_conda import install_conda
from packaging.requirements import Requirement

from support.paths import ROOT
from support.rules import RULE_SCRIPTS, environments, pip_lines
from support.workspaces import Workspace, make_workspace, tiny_config

pytestmark = pytest.mark.conda

CPU = ["data", "onnx", "report", "train"]
CUDA = ["onnx", "train"]
FROM_CONDA = {"pip", "setuptools"}  # conda-forge's pip brings setuptools
GPU_RULES = [name for name in RULE_SCRIPTS if len(environments(name)) == 2]
ALL_GPUS = ["--set-resources", *(f"{name}:gpu=1" for name in GPU_RULES)]


# Python runs such a line of a .pth file first of all: it says which interpreter was started, and for what.
PROBE = "import json, os, sys; open(os.environ['PROBE'], 'a').write(json.dumps([sys.prefix, sys.orig_argv]) + chr(10))"


@pytest.fixture(scope="session")
def conda(tmp_path_factory):
    """Where environments go; what is started in the meantime finds a conda."""
    root = tmp_path_factory.mktemp("conda")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in install_conda(root).items():
            patch.setenv(name, value)
        patch.setenv("PIP_NO_COMPILE", "1")  # most modules are never imported
        patch.setenv("PIP_RETRIES", "0")  # an index out of reach would be asked 6 times, and longer, for each package
        yield root / "environments"
    shutil.rmtree(root)  # gigabytes


@pytest.fixture(scope="session")
def built(conda, tiny_llama, tmp_path_factory) -> dict[str, Path]:
    """The environments by name, made before anything runs."""
    workspace = tiny_run(tmp_path_factory.mktemp("empty"), tiny_llama)
    done = workspace.run(*with_conda(conda), "--conda-create-envs-only")
    made = re.findall(r"Environment for \S*envs/(\S+)\.yaml created \(location: (.*)\)", done.stderr)
    return {name: (workspace.root / prefix).resolve() for name, prefix in made}


@pytest.fixture(scope="session")
def finished(conda, built, tiny_llama, tmp_path_factory) -> Path:
    """A workspace in which each rule ran in its environment, those of the demo and of given models too.

    Each Python of an environment left a line in `seen.jsonl` beside it.
    """
    root = tmp_path_factory.mktemp("run")
    probes = [next(prefix.glob("lib/python3.*/site-packages")) / "probe.pth" for prefix in built.values()]
    for probe in probes:
        probe.write_text(PROBE)
    arguments = with_conda(conda)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE", str(root / "seen.jsonl"))
        workspace = tiny_run(root / "whole", tiny_llama)
        workspace.run(*arguments)
        workspace.run(*arguments, "data/raw/tweets.json", "--configfile", str(ROOT / "config.yaml"))
        for kind in ("adapter", "merged"):
            given = {kind: str(workspace.results / "selected" / kind)}
            make_workspace(root / kind, tiny_llama, finetune=given).run(
                *arguments, f"results/runs/given-{kind}/{kind}.manifest.json"
            )
    for probe in probes:
        probe.unlink()
    return workspace.root


def tiny_run(root: Path, base: Path) -> Workspace:
    """Few rows and a random model, with all that has a rule or a library of its own."""
    calibrated = {"algo_config": "auto_round", "calibration": {"rows": 8, "length": 32, "iterations": 1}}
    finetune = tiny_config(base)["finetune"] | {"method": "qlora", "dtype": "float32"}
    variants = {"int4": {}, "calibrated": calibrated}
    return make_workspace(root, base, finetune=finetune, variants=variants, tracking=["tensorboard", "mlflow"])


def with_conda(prefix: Path) -> list[str]:
    return ["--sdm", "conda", "--conda-prefix", str(prefix)]


# What was built


def test_every_environment_was_built(built):
    assert sorted(built) == CPU


@pytest.mark.parametrize("name", CPU)
def test_an_environment_holds_what_its_file_pins_and_nothing_else(built, name):
    pip = [built[name] / "bin/python", "-m", "pip"]
    done = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True, check=True)
    found = {normal(one["name"]): one["version"].partition("+")[0] for one in json.loads(done.stdout)}
    pinned = dict(pins(ROOT / "envs" / f"{name}.yaml"))
    assert {package: found[package] for package in set(found) - (FROM_CONDA - set(pinned))} == pinned
    subprocess.run([*pip, "check"], check=True)


@pytest.mark.parametrize("name", RULE_SCRIPTS)
def test_each_rule_ran_in_its_own_environment(finished, built, name):
    seen = [json.loads(line) for line in (finished.parent / "seen.jsonl").read_text().splitlines()]
    prefixes = {prefix for prefix, words in seen if f"scripts/{name}.py" in words}
    assert prefixes == {str(built[environments(name)[0].stem])}


# Switching


def test_a_finished_run_has_nothing_left_to_do_with_or_without_conda(finished, conda):
    workspace = Workspace(finished)
    assert workspace.planned(*with_conda(conda)) == set()
    assert workspace.planned() == set()


def test_what_was_made_without_conda_is_not_made_again_with_it(finished, conda):
    workspace = Workspace(finished)
    workspace.run("--force", "results/runs/qlora/adapter.manifest.json", "results/data/audit.json")
    assert workspace.planned(*with_conda(conda)) == set()
    noticed = workspace.planned(*with_conda(conda), "--rerun-triggers", "software-env")
    assert {"audit_data", "train_adapter"} <= noticed, "Snakemake itself would, or this test shows nothing"


def test_a_gpu_takes_the_cuda_environments_and_makes_nothing_again(finished, conda):
    workspace = Workspace(finished)
    assert workspace.planned(*with_conda(conda), *ALL_GPUS) == set()
    assert workspace.planned(*ALL_GPUS) == set()


def test_the_cuda_environment_is_that_of_the_rule_with_the_gpu(finished, conda):
    def missing(*arguments: str) -> set[str]:
        done = Workspace(finished).snakemake("-n", "--forceall", *with_conda(conda), *arguments)
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"Conda environment \S*envs/(\S+)\.yaml will be created", done.stdout + done.stderr))

    assert missing() == set()
    assert missing("--set-resources", "train_adapter:gpu=1") == {"cuda/train"}
    assert missing("--set-resources", "score_onnx:gpu=1", "train_adapter:gpu=0") == {"cuda/onnx"}
    assert missing(*ALL_GPUS) == {"cuda/train", "cuda/onnx"}


# The CUDA environments: resolved, not installed


@pytest.fixture(scope="session")
def resolved(built, tmp_path_factory) -> dict[str, dict[str, dict]]:
    """What pip would install for each CUDA environment: metadata by name of the package."""
    folder = tmp_path_factory.mktemp("pins")
    return {name: resolve(built["data"], name, folder / f"{name}.txt") for name in CUDA}


def resolve(environment: Path, name: str, lines: Path) -> dict[str, dict]:
    # With hashes pip would download all of it.
    asked = [re.sub(r" --hash=\S+", "", line) for line in pip_lines(cuda_file(name)) if line != "--require-hashes"]
    lines.write_text("\n".join(asked))
    # fast-deps reads the metadata alone where an index keeps no copy of it: these wheels are gigabytes.
    ask = ["install", "--dry-run", "--ignore-installed", "--quiet", "--use-feature=fast-deps", "--report", "-"]
    command = [environment / "bin/python", "-m", "pip", *ask, "-r", lines]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [one["metadata"] for one in json.loads(done.stdout)["install"]]
    return {normal(one["name"]): one for one in found}


@pytest.mark.parametrize("name", CUDA)
def test_the_index_has_every_pin_of_a_cuda_environment(resolved, name):
    pinned = dict(pins(cuda_file(name)))
    assert {package: resolved[name][package]["version"] for package in pinned} == pinned


@pytest.mark.parametrize("name", CUDA)
def test_a_cuda_environment_pins_all_that_the_cuda_builds_need(resolved, name):
    assert any(package.startswith("nvidia-") for package in resolved[name]), "a CPU build of torch?"
    assert set(resolved[name]) - FROM_CONDA <= set(dict(pins(cuda_file(name))))


def test_onnxruntime_is_of_the_cuda_that_torch_brings(resolved):
    """What its wheel would ask for as extras is there already, in fitting versions."""
    found = resolved["onnx"]
    extras = [Requirement(need) for need in found["onnxruntime-gpu"]["requires_dist"] if "extra ==" in need]
    libraries = [need for need in extras if need.name.startswith("nvidia-")]
    assert len(libraries) >= 3
    for need in libraries:
        assert need.specifier.contains(found[normal(need.name)]["version"]), need


def cuda_file(name: str) -> Path:
    return ROOT / "envs/cuda" / f"{name}.yaml"


def pins(environment: Path) -> list[tuple[str, str]]:
    """Name and version of each package, without the name of a build."""
    matches = (re.match(r"([a-z0-9.-]+)(?:\[.*\])?={2,3}([^\s+]+)", line) for line in pip_lines(environment))
    return [(normal(match[1]), match[2]) for match in matches if match]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
