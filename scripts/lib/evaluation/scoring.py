"""What scoring in PyTorch and scoring in ONNX Runtime have in common: the rows and the score file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.core.files import hash_file, write_json, write_jsonl
from lib.data.template_inversion import extract_answer, extract_fixed_texts, extract_target
from lib.data.templates import Template, render_completion
from lib.data.tokenizer import Tokenizer, encode_pairs
from lib.evaluation.metrics import measure_quality
from lib.provenance.manifests import build_manifest_path


def encode_choices(
    tokenizer: Tokenizer, template: Template, prompts: Sequence[str]
) -> list[tuple[list[int], list[list[int]]]]:
    """Return for each prompt its ids and, label by label, the ids of the answer behind it (end token included).

    The end token is part of each choice, so labels that are prefixes of each other compare fairly.
    """
    labels = template["labels"]
    assert labels is not None
    answers = [render_completion(template, label) for label in labels]
    pairs = encode_pairs(tokenizer, [(prompt, answer) for prompt in prompts for answer in answers])
    size = len(labels)
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [(group[0][0], [completion for _, completion in group]) for group in groups]


def describe_references(row: dict[str, Any], template: Template) -> dict[str, Any]:
    """Return what a prediction says of the right answers to a corpus row: that of its completion, and others."""
    others = {"other_references": row["other_answers"]} if "other_answers" in row else {}
    return {"reference": extract_target(template, row["completion"]), **others}


def answer_limit(template: Template, choices: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Return tokens that a free answer may take. A label needs little more than the longest of `choices` (their
    ids).
    """
    return 2 + max(map(len, choices)) if template["task"] == "classification" else max_new_tokens


def answer_text(tokenizer: Tokenizer, template: Template, ids: Sequence[int]) -> tuple[str, bool]:
    """Return a free answer without the template's own text, and whether it stopped by itself."""
    end = next((place for place, id_ in enumerate(ids) if id_ in tokenizer.end_ids), None)
    if end is None:
        return extract_answer(template, tokenizer.decode(ids)), False
    # Whichever token ended it: to the template it is its own.
    return extract_answer(template, tokenizer.decode(ids[:end]) + extract_fixed_texts(template)[-1]), True


def write_score(
    *,
    output: Path,
    predictions_file: Path,
    predictions: Sequence[dict[str, Any]],
    stage: str,
    split: str,
    settings: dict[str, Any],
    template: Template,
    inputs: dict[str, Path],
    extra: dict[str, Any] | None = None,
) -> None:
    """Write the predictions of every row and the score that follows from them.

    inputs: files and model folders (hashed by their manifest), so a score names the bytes it is of.
    """
    hashed = {name: build_manifest_path(path) if path.is_dir() else path for name, path in inputs.items()}
    write_jsonl(predictions_file, predictions)
    write_json(
        output,
        {
            "stage": stage,
            "split": split,
            "task": template["task"],
            **measure_quality(
                template["task"],
                predictions,
                template["labels"],
                seed=settings["seed"],
                samples=settings["evaluate"]["bootstrap_samples"],
            ),
            **(extra or {}),
            "inputs": {name: hash_file(path) for name, path in hashed.items()},
        },
    )
