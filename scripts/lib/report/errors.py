"""What does it get wrong?"""

from lib.evaluation.answers import compute_best, compute_label_shares, compute_token_f1
from lib.evaluation.registry import MANY_LABELS
from lib.report import findings
from lib.report.evidence import Evidence
from lib.report.formatting import format_number
from lib.report.page import Block, Section, Table

_EXAMPLES = 20
_LONGEST_TEXT = 400  # characters of an example
_TITLE = "What does it get wrong?"


def show_errors(evidence: Evidence) -> Section:
    if evidence.task == "generation":
        return _far_answers(evidence)
    labels, confusion = evidence.score["labels"], evidence.score["confusion"]
    per_class = evidence.score["per_class"]
    if len(labels) > MANY_LABELS:
        return _many_labels(evidence)
    most = max(max(row) for row in confusion) or 1
    shaded = [
        [label, *({"text": f"{count:,}", "grey": 255 - round(170 * count / most)} for count in row)]
        for label, row in zip(labels, confusion, strict=True)
    ]
    keys = ("precision", "recall", "f1", "support")
    classes = [(label, *(format_number(facts[key]) for key in keys)) for label, facts in per_class.items()]
    blocks: list[Block] = [
        Table("Confusion on test rows: true label down, predicted label across", ("", *labels), shaded, "matrix"),
        Table("By label, on test rows", ("Label", "Precision", "Recall", "F1", "Rows"), classes),
        *_wrong_examples(evidence),
    ]
    return Section("errors", _TITLE, findings.describe_errors(findings.list_label_pairs(labels, confusion)), blocks)


def _many_labels(evidence: Evidence) -> Section:
    """Return the most frequent mistakes and the labels that miss most rows: a table of all pairs would be too large."""
    labels, confusion, per_class = (evidence.score[key] for key in ("labels", "confusion", "per_class"))
    found = [(count, labels[true], labels[said]) for true, said, count in confusion]
    wrong = sorted((one for one in found if one[1] != one[2]), key=lambda one: (-one[0], one[1:]))
    made = [(true, said, format_number(count)) for count, true, said in wrong[:_EXAMPLES]]
    missed = sorted(per_class, key=lambda label: (per_class[label]["recall"] - 1) * per_class[label]["support"])
    keys = ("precision", "recall", "f1", "support")
    classes = [(label, *(format_number(per_class[label][key]) for key in keys)) for label in missed[:MANY_LABELS]]
    caption = f"By label, on test rows: the {len(classes)} of {len(labels):,} that miss most"
    blocks: list[Block] = [
        Table("The mistakes made most on test rows", ("True label", "Predicted label", "Rows"), made),
        Table(caption, ("Label", "Precision", "Recall", "F1", "Rows"), classes),
        *_wrong_examples(evidence),
    ]
    return Section("errors", _TITLE, findings.describe_errors(found), blocks)


def _wrong_examples(evidence: Evidence) -> list[Table]:
    """Return the errors that the model was surest of."""
    wrong = [
        (compute_label_shares(row["log_probs"]), text, row)
        for _, text, row in evidence.examples
        if row["predicted"] != row["label"]
    ]
    wrong.sort(key=lambda item: -item[0][item[2]["predicted"]])
    rows = [
        (_cut(text), row["label"], row["predicted"], f"{shares[row['predicted']]:.2f}", f"{shares[row['label']]:.2f}")
        for shares, text, row in wrong[:_EXAMPLES]
    ]
    head = ("Text", "True", "Predicted", "Its probability", "That of the true one")
    caption = f"The {len(rows)} errors that the model was surest of"
    return [Table(caption, head, rows, style="wide examples")] if rows else []


def _far_answers(evidence: Evidence) -> Section:
    answered = [
        (compute_best(compute_token_f1, row), text, row)
        for _, text, row in evidence.examples
        if row["answer"] is not None
    ]
    total = len(answered)
    answered = [item for item in answered if item[0] < 1]
    answered.sort(key=lambda item: item[0])
    answer = f"{len(answered):,} of {total:,} free answers to test rows differ from their reference in a word."
    rows = [(_cut(text), _cut(row["reference"]), _cut(row["answer"]), f"{f1:.2f}") for f1, text, row in answered]
    head = ("Question", "Reference", "Answer", "Token F1")
    caption = f"The {min(len(rows), _EXAMPLES)} answers furthest from their reference, of {total:,}"
    table = Table(caption, head, rows[:_EXAMPLES], style="wide examples")
    return Section("errors", _TITLE, answer, [table] if rows else [])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
