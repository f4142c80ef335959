"""Start-up: no script loads a library that it does not use, and none lets a library report to its maker."""

import json
import os
import subprocess
import sys

import pytest

from lib.core.cli import NO_TELEMETRY
from lib.core.files import write_jsonl
from support.paths import SCRIPTS

HEAVY = (
    *("torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime_genai", "sklearn", "scipy", "datasets"),
    *("pydantic", "matplotlib", "tokenizers", "datasketch", "numpy", "pandas", "pyarrow", "mlflow", "tensorboardX"),
)
# What each script needs before it begins. Data rules read JSON without any of them; numbers need numpy.
# transformers' Trainer brings scipy and datasets with it.
NEEDED = {
    "adopt": "",
    "assemble_model": "",
    "audit_data": "numpy",
    "benchmark_onnx": "numpy onnxruntime_genai",
    "build_onnx": "numpy onnx onnxruntime_genai",
    "calibrate_weights": "numpy torch",
    "check_build": "numpy onnx onnxruntime_genai",
    "check_corpus": "numpy",
    "check_model": "",
    "check_training": "datasets numpy pandas peft pyarrow scipy tokenizers torch transformers",
    "check_gate": "numpy",
    "check_leakage": "numpy",
    "check_tokenizer": "numpy onnx",
    "choose_merge": "numpy",
    "check": "",
    "clean": "",
    "compare_results": "numpy",
    "permuted_label_control": "numpy pydantic",
    "enforce_gate": "",
    "fetch_adapter": "numpy torch",
    "fit_temperature": "numpy",
    "fetch_data": "",
    "fetch_merged": "numpy torch",
    "fetch_tokenizer": "",
    "fetch_model": "",
    "fetch_results": "",
    "fetch_tweets": "",
    "render_generated": "numpy pydantic",
    "import_olive": "numpy pydantic",
    "keep_selected": "",
    "lock_hashes": "",
    "merge_adapter": "numpy torch",
    "package_model": "numpy",
    "predict": "numpy onnxruntime_genai",
    "publish": "numpy",
    "render_corpus": "",
    "run": "",
    "score_baselines": "numpy",
    "score_checkpoint": "numpy torch",
    "score_onnx": "numpy onnx onnxruntime onnxruntime_genai",
    "select_model": "numpy",
    "serve": "",
    "set_up": "",
    "split_data": "",
    "summarize": "numpy",
    "trace_lineage": "",
    "track_results": "",
    "track_training": "",
    "train_adapter": "datasets numpy pandas peft pyarrow scipy tokenizers torch transformers",
    "with_gpus": "",
    "write_plots": "numpy",
    "write_report": "numpy",
}
REPORTING = (
    "onnxruntime",
    "onnxruntime_genai",
    "huggingface_hub",
    "dvc",
    "mlflow",
)  # unless told not to when they are imported
# Prints what is loaded when the script leaves, by os._exit after a run, by SystemExit after --help.
WATCH = f"""
import os, runpy, sys

def leave(code, real=os._exit):
    print("loaded:", *sorted(set({HEAVY!r}) & set(sys.modules)), flush=True)
    real(code)

class Guard:
    def find_spec(name, path=None, target=None):
        if name in {REPORTING!r} and not {{*{NO_TELEMETRY!r}}} <= os.environ.keys():
            print(f"{{name}} was imported before telemetry was turned off", flush=True)
            os._exit(3)

sys.meta_path.insert(0, Guard)

os._exit = leave
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as error:
    leave(error.code or 0)
"""


def loaded(name: str, *words: object) -> set[str]:
    texts = [json.dumps(word) if isinstance(word, dict) else str(word) for word in words]
    command = [sys.executable, "-c", WATCH, str(SCRIPTS / f"{name}.py"), *texts]
    silent = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    done = subprocess.run(command, capture_output=True, text=True, env=silent)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


def test_every_script_is_here():
    assert set(NEEDED) == {path.stem for path in SCRIPTS.glob("*.py")}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_script_begins_with_what_it_needs_and_no_more(name):
    assert loaded(name, "--help") == set(NEEDED[name].split())


LOAD = """
import sys
{first}
import onnx.parser, onnxruntime
graph = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[1] a) => (float[1] b) {{ b = Identity(a) }}')
onnxruntime.InferenceSession(graph.SerializeToString())
"""


@pytest.mark.parametrize(
    ("first", "left"), [("", True), (f"sys.path.insert(0, {str(SCRIPTS)!r}); import lib.core.cli", False)]
)
def test_onnx_runtime_reports_nothing_once_lib_cli_is_imported(first, left, tmp_path):
    """Its telemetry keeps a device id in the home folder; the CI variable would hide that."""
    outside = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", LOAD.format(first=first)], check=True, env=outside)
    assert any(tmp_path.rglob("deviceid")) == left


def test_data_rules_run_without_what_they_do_not_use(tmp_path, tiny_phi3):
    """The whole stage on JSON rows: no torch, no datasets, no scipy; only the baselines take sklearn."""
    place = {name: tmp_path / name for name in ("rows", "audit", "rejected", "kept", "split", "leakage")}
    raw = tmp_path / "raw.jsonl"
    words = ["river", "stone", "cloud", "table", "music", "winter", "garden", "letter", "window", "bread"]
    write_jsonl(
        raw,
        ({"text": f"{words[n % 10]} {n * n} {words[n * 7 % 10]} {n * 31}", "tone": "ab"[n % 2]} for n in range(60)),
    )
    files = [word for name in ("train", "validation", "test") for word in (f"--{name}", tmp_path / name)]
    templated = [*files, "--template", tmp_path / "template"]
    audited = ("--audit", place["audit"], "--kept", place["kept"])
    corpus = {
        **{"template": None, "text_template": "{text}\n{tone}", "system": None, "user": None},
        **{"max_length": 64, "truncation": "reject"},
    }
    data = {
        **{"target": "tone", "special_tokens": "reject"},
        **{"near_duplicates": 0.8, "min_rows_per_class": 1},
    }
    settings = {"task": "classification", "data": data, "corpus": corpus}
    source = {"source": {"files": ["raw.jsonl"]}, "unreadable": "error"}
    assert loaded("fetch_data", "--settings", source, "--files", raw, "--output", place["rows"]) == set()
    base = ("--tokenizer", tiny_phi3)
    rows = ("--rows", place["rows"], "--rejected", place["rejected"])
    assert loaded("audit_data", "--settings", settings, *rows, *audited, *base) == {"numpy", "tokenizers"}
    shares = {"seed": 1, "task": "classification", "split": {"validation": 0.2, "test": 0.2, "leakage": "error"}}
    assert loaded("split_data", "--settings", shares, *audited, "--output", place["split"]) == set()
    split = ("--split", place["split"])
    assert loaded("render_corpus", "--settings", settings, *audited, *split, *base, *templated) == {"tokenizers"}
    leakage = ("--output", place["leakage"])
    assert loaded(
        "check_leakage", "--settings", {"near_duplicates": 0.8, "leakage": "error"}, *templated, *leakage
    ) == {"numpy"}
    scored = {"task": "classification", "seed": 1, "evaluate": {"bootstrap_samples": 10, "greedy_rows": 1}}
    outputs = ("--output", tmp_path / "scores", "--predictions", tmp_path / "predictions")
    used = loaded("score_baselines", "--settings", scored, *templated, *outputs)
    assert "sklearn" in used
    assert not used & {"torch", "transformers", "tokenizers", "datasets", "matplotlib"}
