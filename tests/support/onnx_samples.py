"""A small corpus for a tiny model, and ONNX builds of it without a process for each."""

import argparse
import json
import os
from pathlib import Path

LABELS = ["joy", "joyful", "sadness", "fear"]  # one is a prefix of another
TEXTS = [
    "Bread 🙂 smells of {morning}",
    "He cried and laughed",
    "ümläut\ttab 42",
    "the old dog, again; and again the old dog",
    "Nobody had told him.",
]
VARIANT = {"precision": "int4", "execution_provider": "cpu"}
SETTINGS = {
    "task": "classification",
    "seed": 0,
    "evaluate": {"greedy_rows": 2, "batch_size": 2, "max_new_tokens": 6, "bootstrap_samples": 50},
    "versions": {},
}


def write_corpus(folder: Path, base: Path, task: str = "classification", truncation: str = "reject") -> Path:
    """`rows.jsonl` and `template.json` for the tokenizer of `base`; returns `folder`."""
    from lib.core.files import write_json, write_jsonl
    from lib.data.templates import compile_template, render_completion, render_prompt
    from lib.data.tokenizer import load_tokenizer

    labels = LABELS if task == "classification" else None
    corpus = {"template": "chat", "user": "Which tone?\n{text}"}
    template = compile_template(corpus, load_tokenizer(base), task=task, target="tone", labels=labels)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "template.json", {**template, "max_length": 64, "truncation": truncation})
    rows = []
    for number, text in enumerate(TEXTS):
        answer = LABELS[number % len(LABELS)] if labels else f"a fresh {text.split()[0]}"
        row = {
            "id": f"{number:064d}",
            "prompt": render_prompt(template, {"text": text}),
            "completion": render_completion(template, answer),
        }
        rows.append(row | ({"label": answer} if labels else {}))
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


def build(merged: Path, rows: Path, output: Path, calibrated: Path | None = None, **options) -> Path:
    """Run `build_onnx` in this process: importing the builder takes seconds, a build of these none."""
    import build_onnx

    from lib.config.variants import Variant

    variant = Variant.model_validate(VARIANT | options).model_dump(mode="json")
    build_onnx.main(
        argparse.Namespace(
            settings={"variant": variant, "versions": {}},
            merged=merged,
            calibrated=calibrated,
            rows=rows,
            output=output,
            threads=1,
        )
    )
    assert os.environ.get("GIT_DIR") != os.devnull  # what follows in this process runs git
    return output


def score(model: Path, base: Path, corpus: Path, output: Path, task: str = "classification") -> tuple[dict, list[dict]]:
    """Run `score_onnx` in this process; returns score and predictions."""
    import score_onnx

    score_onnx.main(
        argparse.Namespace(
            settings=SETTINGS | {"task": task},
            model=model,
            tokenizer=base,
            rows=corpus / "rows.jsonl",
            template=corpus / "template.json",
            stage="lora/onnx-test",
            split="validation",
            output=output,
            predictions=output.with_suffix(".jsonl"),
            threads=1,
        )
    )
    predictions = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    return json.loads(output.read_text()), predictions
