"""The project's own files agree with each other."""

import ast
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.resources import Resources

from lib.hardware import resources
from lib.provenance.code_closure import find_code_closure
from lib.sources.lock_file import read_lock
from lib.workflow.helpers import choose_environment_file
from support.paths import ROOT, SCRIPTS
from support.rules import RULE_SCRIPTS, TEXT, environments, pip_lines, rule_text


def test_generated_files_are_up_to_date():
    done = subprocess.run([sys.executable, SCRIPTS / "render_generated.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}\nrun `make generated`"


@pytest.mark.parametrize("name", RULE_SCRIPTS)
def test_a_rule_its_script_its_log_and_its_timing_share_one_name(name):
    text = rule_text(name)
    assert (SCRIPTS / f"{name}.py").is_file()
    assert f'script=script("{name}")' in text
    assert f'modules=modules("{name}")' in text
    assert f"{{R}}/logs/{name}/" in text
    assert "conda:" in text
    if name != "enforce_gate":
        assert f"{{R}}/timings/{name}/" in text


MODULE_OF = {
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "azure-core": "azure",
    "mlflow-skinny": "mlflow",
    "tensorboardx": "tensorboardX",
    "onnxruntime-gpu": "onnxruntime",
    "onnxruntime-genai-cuda": "onnxruntime_genai",
}


@pytest.mark.parametrize("name", RULE_SCRIPTS)
def test_every_import_of_a_script_is_in_its_conda_environments(name):
    check_imports(name, environments(name))


def test_so_is_every_import_of_what_a_training_starts():
    check_imports("track_training", environments("train_adapter"))


def check_imports(name: str, places: list[Path]) -> None:
    script = SCRIPTS / f"{name}.py"
    needed = {m.partition(".")[0] for path in (script, *find_code_closure(script)) for m in list_imports(path)}
    foreign = needed - set(sys.stdlib_module_names) - {"lib"} - OPTIONAL.get(name, set())
    for environment in places:
        packages = {pin.partition("=")[0] for pin in pip_lines(environment)}
        modules = {MODULE_OF.get(package, package.replace("-", "_")) for package in packages}
        assert foreign <= modules, f"{environment} lacks {foreign - modules}"


# Imports inside functions that the script never calls: a shared module serves several scripts.
OPTIONAL: dict[str, set[str]] = {
    "build_onnx": {"peft", "bitsandbytes"},
    "calibrate_weights": {"peft", "bitsandbytes"},
    "check_build": {"peft", "bitsandbytes"},
}


@pytest.mark.parametrize("name", ["fetch_data", "split_data", "render_corpus", "select_model", "check_gate"])
def test_rules_without_a_model_start_without_torch(name):
    code = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def list_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return names


def test_the_closure_follows_imports_of_imports(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.py").write_text("import json\nfrom lib.b import x\n")
    lazily = "def f():\n    try:\n        pass\n    except OSError:\n        from lib import c\n"
    (tmp_path / "lib/b.py").write_text(lazily)
    (tmp_path / "lib/c.py").write_text("")
    (tmp_path / "lib/unused.py").write_text("")
    (tmp_path / "script.py").write_text("import lib.a\n")
    assert [path.name for path in find_code_closure(tmp_path / "script.py")] == ["a.py", "b.py", "c.py"]


@pytest.mark.parametrize(
    "text",
    [
        "import lib.a.x\n",
        "import json, lib.a.x as x\n",
        "from lib.a import x\n",
        "from lib.a.x import f\n",
        "from lib.a import (  # both\n    y as z,\n    x,\n)\n",
        "if True:\n    from lib.a import x as y\n",
    ],
)
def test_the_closure_knows_every_form_of_an_import(text, tmp_path):
    (tmp_path / "lib/a").mkdir(parents=True)
    (tmp_path / "lib/a/x.py").write_text("")
    (tmp_path / "script.py").write_text(text)
    assert find_code_closure(tmp_path / "script.py") == [tmp_path / "lib/a/x.py"]


def test_the_closure_overlooks_no_import_that_python_sees():
    """It reads the lines of import statements and does not parse them."""
    for script in SCRIPTS.glob("*.py"):
        closure = find_code_closure(script)
        names = {name for path in (script, *closure) for name in list_imports(path) if name.startswith("lib.")}
        files = {SCRIPTS.joinpath(*name.split(".")).with_suffix(".py") for name in names}
        assert {file for file in files if file.is_file()} == set(closure), script.name


ENVIRONMENTS = sorted((ROOT / "envs").rglob("*.yaml"))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pip_pins_every_package_of_an_environment(environment):
    """A pin file would hide the pip section from Snakemake, so everything is pinned there and python alone in conda."""
    content = yaml.safe_load(environment.read_text())
    assert content["channels"] == ["conda-forge"]
    assert content["dependencies"][:2] == ["python=3.11", "pip"]
    options = [line for line in pip_lines(environment) if line.startswith("--")]
    assert options[:2] == ["--require-hashes", "--only-binary=:all:"]
    assert set(options[2:]) <= {"--extra-index-url https://download.pytorch.org/whl/cpu"}
    assert not list(environment.parent.glob("*.pin.txt"))


@pytest.mark.parametrize("group", ["train", "onnx"])
def test_a_cuda_environment_differs_in_the_cuda_builds_alone(group):
    cpu, cuda = (pip_lines(ROOT / "envs" / folder / f"{group}.yaml") for folder in ("", "cuda"))
    names = {name_of(line) for line in cuda}
    assert not [line for line in cuda if line.startswith("--extra")], "an index of CPU builds"
    assert len(names & {"onnxruntime-genai", "onnxruntime-genai-cuda"}) == (group == "onnx"), "files of the same names"
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == (group == "onnx")
    replaced = {"torch", "onnxruntime", "onnxruntime-genai"}
    libraries = read_lock((ROOT / "envs/cuda/torch.lock").read_text(), "")[1]
    added = {*replaced, "onnxruntime-gpu", "onnxruntime-genai-cuda", *(entry.name for entry in libraries)}
    assert {name_of(line) for line in set(cpu) - set(cuda) if line[0] != "-"} <= replaced
    assert {name_of(line) for line in set(cuda) - set(cpu)} <= added


def name_of(line: str) -> str:
    return re.split(r"[\[=]", line)[0]


@pytest.mark.parametrize("kind", [Resources.from_mapping, dict])
def test_the_environment_follows_from_the_gpu(kind):
    assert choose_environment_file("train", {}) == "../envs/train.yaml"
    assert choose_environment_file("train", kind({"mem_mb": 9})) == "../envs/train.yaml"
    assert choose_environment_file("train", kind({"gpu": 0})) == "../envs/train.yaml"
    assert choose_environment_file("onnx", kind({"gpu": 1})) == "../envs/cuda/onnx.yaml"


def test_every_value_in_a_command_is_quoted():
    """Else a file's name could run a command. `:q` quotes a list word by word, so no param is more than words."""
    blocks = re.findall(r"^    shell:\n((?: +\".*\"\n)+)", TEXT, flags=re.MULTILINE)
    calls = re.findall(r"\bshell\((.*)\)$", TEXT, flags=re.MULTILINE)
    assert len(blocks) == len(RULE_SCRIPTS)
    assert len(blocks) + len(calls) == len(re.findall(r"\bshell\b", TEXT))
    for command in (ast.literal_eval(f"({text})") for text in [*blocks, *calls]):
        for before, field, how, _ in string.Formatter().parse(command):
            assert field is None or how == "q", f"{{{field}}} in {command}"
            assert not before.endswith(("'", '"', "\\")), f"quoted twice: {{{field}}} in {command}"


def test_no_program_is_started_through_a_shell():
    for path in [path for folder in ("scripts", "src", "benchmarks") for path in (ROOT / folder).rglob("*.py")]:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, options = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
            through = re.fullmatch(r"os\.(system|popen)|subprocess\.get(status)?output", name) or "shell" in options
            assert not through, f"{path}:{call.lineno}"


def test_no_code_of_a_model_is_ever_run():
    for path in SCRIPTS.rglob("*.py"):
        assert "trust_remote_code=True" not in path.read_text(), path


# Resources


FINETUNE = {
    "num_train_epochs": 1,
    "max_steps": None,
    "eval_steps": 100,
    "per_device_eval_batch_size": 16,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "corpus_strategy": "rows",
    "source_max_len": 1024,
    "dtype": "auto",
    "r": 16,
    "loss": "completion",
    "eval_rows": None,
}


def test_memory_grows_with_the_model_and_lies_above_what_was_measured():
    """Measured peaks with SmolLM2-135M in fp32 on 2 cores: docs in lib/hardware/resources.py."""
    small, large = 134_515_008, 3_821_079_552
    assert 2_000 < resources.estimate_train_mb(small, FINETUNE, 128, "classification") < 8_000
    assert resources.estimate_train_mb(large, FINETUNE, 128, "classification") > 4 * large / 1e6
    assert (
        776 < resources.estimate_merge_mb(361_800_000) < resources.estimate_merge_mb(large)
    )  # it streams: less than the weights
    for formula in (resources.estimate_fetch_model_mb, resources.estimate_build_mb, resources.estimate_score_mb):
        assert formula(small) < formula(large)
        assert formula(large) > 4 * large / 1e6


def test_a_retry_gets_more_time():
    first, second = (
        resources.estimate_train_minutes(134_515_008, 1.0, 0.1, FINETUNE, None, attempt) for attempt in (1, 2)
    )
    assert second > first > 10


def test_free_answers_of_validations_count_and_so_do_logits_of_long_answers():
    few, many = ({"greedy_rows": rows, "max_new_tokens": 64} for rows in (16, 160))
    plain, few_answers, many_answers = (
        resources.estimate_train_minutes(10**9, 1.0, 0.1, FINETUNE, evaluate, 1) for evaluate in (None, few, many)
    )
    assert many_answers - plain == pytest.approx(10 * (few_answers - plain), abs=10)
    label, text = (resources.estimate_train_mb(10**9, FINETUNE, 128, task) for task in ("classification", "generation"))
    rows = FINETUNE["per_device_train_batch_size"]
    assert text - label == pytest.approx(12 * 150_000 * 128 * rows / 1e6, abs=1)


def test_a_validation_counts_with_the_rows_that_it_scores():
    import train_adapter

    assert resources.EVAL_ROWS == train_adapter.EVAL_ROWS
    few, many, some = (
        resources.estimate_train_minutes(10**9, 1.0, megabytes, {**FINETUNE, "eval_rows": rows}, None, 1)
        for megabytes, rows in ((0.4, None), (40.0, None), (40.0, 100))
    )
    assert some < few == many


def test_steps_decide_over_epochs():
    steps = {**FINETUNE, "max_steps": 10}
    assert resources.estimate_train_minutes(10**9, 1000.0, 0.1, steps, None, 1) < resources.estimate_train_minutes(
        10**9, 1000.0, 0.1, FINETUNE, None, 1
    )
