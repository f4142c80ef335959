"""What is wrong with the data?"""

from collections import Counter
from typing import Any

from lib.core.layout import SPLITS
from lib.data.labels import format_counts
from lib.data.tokenizer_check import describe_check
from lib.evaluation.registry import MANY_LABELS
from lib.report import findings
from lib.report.evidence import Evidence
from lib.report.formatting import format_heading, format_metric, format_number, format_percent, format_value
from lib.report.page import Block, Section, Table


def show_data_quality(evidence: Evidence) -> Section:
    audit, data = evidence.audit, evidence.summary["data"]
    reasons = [
        (f"set aside: {reason.replace('_', ' ')}", format_number(count)) for reason, count in audit["rejected"].items()
    ]
    rows = [("rows read", format_number(data["rows"])), *reasons, ("rows kept", format_number(data["kept"]))]
    rows += [(f"rows in {split}", format_number(data[split])) for split in SPLITS]
    rows += [
        ("near-duplicate clusters", format_number(audit["near_duplicate_clusters"])),
        ("rows in them", format_number(audit["near_duplicate_rows"])),
        ("rows in clusters of differing labels", format_number(audit["rows_in_mixed_clusters"])),
    ]
    lengths = [(key.replace("_", " "), format_value(value)) for key, value in audit["tokens"].items()]
    blocks: list[Block] = [
        findings.describe_leakage(evidence.leakage),
        *_leaks(evidence),
        describe_check(evidence.summary["tokenizer"]),
        *(_classes(evidence) if evidence.task == "classification" else []),
        Table("Rows", ("", "Rows"), rows),
        Table("Length in tokens, prompt and answer, before truncation", ("", "Tokens"), lengths),
    ]
    return Section("data", "What is wrong with the data?", findings.describe_audit(audit), blocks)


def _leaks(evidence: Evidence) -> list[Block]:
    """Return the test scores with and without the rows that leak, where any do."""
    leaks = evidence.summary.get("leaks")
    if not leaks:
        return []
    name = evidence.main
    of = {"model": evidence.summary["model"], "base": evidence.summary["base"], **evidence.summary["baselines"]}
    rows = [
        (
            format_heading(one),
            format_metric(name, of[one]["test"][name]),
            format_metric(name, quality[name] if quality else None),
            format_number(quality["n"] if quality else 0),
        )
        for one, quality in leaks["without"].items()
    ]
    head = ("", f"{format_heading(name)}, all test rows", "Without rows that leak", "Rows left")
    return [Table("Test scores with and without the rows that are like one of an earlier split", head, rows)]


def _classes(evidence: Evidence) -> list[Block]:
    audit, by_label = evidence.audit, evidence.split["by_label"]
    words = audit["label_word_in_text"]
    # In the order of the labels, unless there are too many to show.
    many = len(audit["classes"]) > MANY_LABELS
    counted = Counter(audit["classes"]).most_common(MANY_LABELS) if many else audit["classes"].items()
    rows = [
        (
            label,
            format_number(count),
            format_percent(count / audit["kept"]),
            *(format_number(by_label[label][split]) for split in SPLITS),
            format_percent(words["by_label"][label]),
        )
        for label, count in counted
    ]
    head = ("Label", "Rows", "Share", "Train", "Validation", "Test", "Word in text")
    blocks: list[Block] = [
        f"{format_percent(words['share'])} of the texts hold the word of their own label.",
        *_labels_alike(audit["label_spellings"]["differing_in_case"]),
        Table(f"Balance of the {MANY_LABELS} most frequent labels" if many else "Balance of the labels", head, rows),
    ]
    if audit["keyword_shortcuts"]:
        found = [
            (one["word"], one["label"], format_number(one["rows"]), format_number(one["rows_of_label"]))
            for one in audit["keyword_shortcuts"]
        ]
        caption = "Words that nearly give a label away"
        blocks.append(Table(caption, ("Word", "Label", "Rows with it", "Of that label"), found))
    return blocks


def _labels_alike(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    groups = "; ".join(map(format_counts, found["groups"]))
    return [f"Labels that differ by case or width alone are labels of their own here: {groups}."]
