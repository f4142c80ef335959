"""What each rule does, in words for the person who waits."""

import re
from collections.abc import Mapping

from lib.core.escaping import escape_controls

STEPS = {
    "fetch_tweets": "fetch the demo's rows",
    "fetch_data": "read the rows",
    "fetch_tokenizer": "fetch the tokenizer of the base model",
    "fetch_model": "fetch the base model",
    "audit_data": "check the rows",
    "split_data": "split the rows into train, validation and test",
    "render_corpus": "write prompts and completions",
    "check_leakage": "check that no row is in two splits",
    "check_training": "train a small model of the base model's kind",
    "check_build": "build a small model of the base model's kind",
    "check_model": "collect the checks of the base model",
    "check_corpus": "check that prompts and answers fit the model",
    "check_tokenizer": "check the tokenizer of the ONNX models",
    "fetch_adapter": "fetch the adapter",
    "train_adapter": "train the adapter",
    "merge_adapter": "merge the adapter into the base model",
    "choose_merge": "choose between the merged models",
    "fetch_merged": "fetch the fine-tuned model",
    "score_checkpoint": "score the PyTorch model",
    "calibrate_weights": "learn the rounding of the weights",
    "build_onnx": "build the ONNX model",
    "score_onnx": "score the ONNX model",
    "benchmark_onnx": "measure the speed of the ONNX model",
    "score_baselines": "score the baselines",
    "select_model": "select the model",
    "fit_temperature": "correct the probabilities of the selected model",
    "assemble_model": "assemble the selected model",
    "keep_selected": "keep the selected adapter and merged model",
    "check_gate": "compare the model with the gate",
    "summarize": "collect all numbers",
    "package_model": "package the model",
    "write_plots": "write the tables for plots",
    "write_report": "write the report",
    "track_results": "tell the trackers",
    "enforce_gate": "see whether the gate passed",
}
TARGETS = ("all", "evidence")  # rules that only name files


def find_own_name(rule: str) -> str:
    """Return what a rule is called here. rule: its name in a workflow that has slmflow as a module: `my_split_data`."""
    names = [name for name in STEPS if re.search(rf"(^|_){name}(_|$)", rule)]
    return max(names, key=len, default=rule)


def describe_step(rule: str, wildcards: Mapping[str, str]) -> str:
    """Return a job in words: `train the adapter (run lora)`."""
    values = ", ".join(f"{name} {value}" for name, value in wildcards.items())
    return escape_controls(STEPS.get(rule, rule) + (f" ({values})" if values else ""))
