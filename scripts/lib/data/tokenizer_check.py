"""The verdict of `check_tokenizer`, and how report and model card put it."""

from typing import TypedDict


class TokenizerCheck(TypedDict):
    """`corpus/onnx_tokenizer.json`: the rows that ONNX Runtime GenAI's own tokenizer reads otherwise.

    differ: None where it cannot read them; `error` says why. examples: the first rows that differ, with their place.
    """

    rows: int
    differ: int | None
    error: str | None
    examples: list[dict[str, str | int]]


def describe_check(check: TokenizerCheck) -> str:
    """Return the verdict in a sentence or two."""
    name, rows = "ONNX Runtime GenAI's own tokenizer", f"{check['rows']:,} rows"
    unaffected = "predict.py does not use it; programs that do must take the ids of the library tokenizers instead."
    if check["error"] is not None:
        return f"{name} cannot read this model's ({check['error']}): {unaffected}"
    if check["differ"]:
        return f"{name} reads {check['differ']:,} of {rows} otherwise than the model was trained: {unaffected}"
    return f"{name} reads all {rows} as the model was trained."
