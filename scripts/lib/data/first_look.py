"""What rows are like once they are rendered: what a person looks at before a training."""

import os
import random
from pathlib import Path
from typing import Any

from lib.core.files import read_json, read_jsonl
from lib.core.layout import SPLITS
from lib.hardware.resources import TOKEN_BYTES

MOST_ROWS = 20_000  # that are examined


def sample_rows(rows: Path, sample: Path, seed: int) -> int | None:
    """Write a sample of `MOST_ROWS` rows where a file has more, in their order; return how many the file has then.

    None: it has fewer, and nothing was written.
    """
    with open(rows, "rb") as lines:
        count = sum(1 for _ in lines)
    if count <= MOST_ROWS:
        return None
    chosen = set(random.Random(seed).sample(range(count), MOST_ROWS))
    with open(rows, "rb") as lines, open(sample, "wb") as out:
        out.writelines(line for number, line in enumerate(lines) if number in chosen)
    return count


def describe_rows(files: dict[str, Path], count: int | None) -> dict[str, Any]:
    """Return what audit, split and corpus say of the rows.

    files: the outputs of the rules by name (`audit.json`, `split.json`, `train.jsonl`, …). count: rows of the whole
    file where these are a sample of it; numbers of rows are then those of the sample, sizes those of the whole.
    """
    audit, split = read_json(files["audit.json"]), read_json(files["split.json"])
    examined = audit["rows"]
    scale = count / examined if count else 1.0
    mean = audit["tokens"]["mean"]
    corpus = {name: list(read_jsonl(files[f"{name}.jsonl"])) for name in SPLITS}
    rejected = sorted(audit["rejected"].items(), key=lambda item: (-item[1], item[0]))
    return {
        "rows": count or examined,
        "examined": examined,
        "kept": audit["kept"],
        "set_aside": dict(rejected),
        "classes": audit.get("classes"),
        "tokens": {name: audit["tokens"][name] for name in ("mean", "p50", "p95", "max")},
        "splits": {name: round(scale * len(rows)) for name, rows in corpus.items()},
        "given_splits": split.get("given", []),
        "example": mark_example(corpus["train"][0]),
        "sizes": {name: scale * len(rows) * mean * TOKEN_BYTES / 1e6 for name, rows in corpus.items()},
        "answer_tokens": _count_answer_tokens(corpus["train"], mean),
        "shared": _find_shared_part(corpus["train"]),
        "rows_mb": scale * files["kept.jsonl"].stat().st_size / 1e6,
    }


def mark_example(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's text, and where in it the parts begin and end that the model learns to write."""
    prompt, completion = row["prompt"], row["completion"]
    spans = [list(span) for span in row.get("spans", [])]
    return {"text": prompt + completion, "learned": [*spans, [len(prompt), len(prompt) + len(completion)]]}


def _find_shared_part(rows: list[dict[str, Any]]) -> float:
    """Return the part of a row's characters that all rows begin with."""
    characters = sum(len(row["prompt"]) + len(row["completion"]) for row in rows)
    shared = os.path.commonprefix([row["prompt"] for row in rows])  # noqa: RUF071 (texts, no paths)
    return len(rows) * len(shared) / characters


def _count_answer_tokens(rows: list[dict[str, Any]], mean: float) -> float:
    """Return about how many tokens a completion has: its share of the characters, and at least two.

    mean: tokens of a row.
    """
    characters = sum(len(row["prompt"]) + len(row["completion"]) for row in rows)
    return max(2.0, mean * sum(len(row["completion"]) for row in rows) / characters)
