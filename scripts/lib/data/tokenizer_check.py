"""The verdict of `check_tokenizer`, and how report and model card put it."""

from typing import TypedDict


class TokenizerCheck(TypedDict):
    """`corpus/onnx_tokenizer.json`: the rows that ONNX Runtime GenAI's own tokenizer reads otherwise.

    differ: None where it cannot read them; `error` says why. examples: the first rows that differ, with their place.
    asked_otherwise: rows whose prompt comes out otherwise of the packaged chat template, rendered and read by it; None
    where it cannot, or where rows are conversations, whose own template ships.
    """

    rows: int
    differ: int | None
    error: str | None
    examples: list[dict[str, str | int]]
    asked_otherwise: int | None


def describe_check(check: TokenizerCheck) -> str:
    """Return the verdict in a few sentences."""
    name, rows = "ONNX Runtime GenAI's own tokenizer", f"{check['rows']:,} rows"
    unaffected = "predict.py does not use it; programs that do must take the ids of the library tokenizers instead."
    if check["error"] is not None:
        return f"{name} cannot read this model's ({check['error']}): {unaffected}"
    said = f"{name} reads all {rows} as the model was trained."
    if check["differ"]:
        said = f"{name} reads {check['differ']:,} of {rows} otherwise than the model was trained: {unaffected}"
    if check["asked_otherwise"] is None:
        return said
    if check["asked_otherwise"]:
        return f"{said} Its chat template asks {check['asked_otherwise']:,} of them otherwise."
    return f"{said} Its chat template asks the trained prompt of each row."
