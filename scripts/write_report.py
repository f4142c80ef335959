"""Write the evidence for a reader: one HTML file that needs no network, every number also in a table.

It starts with the answer (which model, did it pass) and goes down to the hashes. Sentences follow
from the numbers, whatever these turn out to be.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lib import findings, plots
from lib.cli import fail, parser, run, settings_argument
from lib.files import canonical_json, published, read_json, read_jsonl, sha256_file
from lib.findings import metric, named, number, percent
from lib.inputs import input_text, word_places
from lib.metrics import BASELINE, MAIN_METRIC, label_shares, token_f1

_COLUMNS = {
    "classification": ("accuracy", "macro_f1", "greedy_accuracy", "invalid_rate", "stop_rate"),
    "generation": ("chrf", "token_f1", "exact_match", "perplexity", "stop_rate"),
}
_EXAMPLES = 20
_LONGEST_TEXT = 400  # characters of an example


@dataclass(frozen=True)
class Table:
    """head names the columns; the first cell of a row is its heading. A cell is text, text with
    a note below it, or text on a grey.

    strong: index of the row in bold. folded: closed until the reader opens it.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    style: str = "numbers"
    strong: int | None = None
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[str | Table | Figure]


@dataclass(frozen=True)
class Evidence:
    """All that the report reads. examples: test row, its input text and its prediction."""

    settings: dict[str, Any]
    summary: dict[str, Any]
    metric: str
    audit: dict[str, Any]
    split: dict[str, Any]
    leakage: dict[str, Any]
    baselines: dict[str, Any]
    training: dict[str, dict[str, Any]]
    score: dict[str, Any]
    examples: list[tuple[dict[str, Any], str, dict[str, Any]]]
    timings: list[tuple[str, int, float, float | None]]
    manifests: list[Path]

    @property
    def task(self) -> str:
        return self.settings["task"]

    @property
    def main(self) -> str:
        """The metric that is compared with baselines and between stages."""
        return MAIN_METRIC[self.task]


def main(args: argparse.Namespace) -> None:
    evidence = _read(args)
    sections = [
        _worth_it(evidence),
        _how_sure(evidence),
        _stages(evidence),
        _selection(evidence),
        _errors(evidence),
        _training(evidence),
        _data(evidence),
        _time(evidence),
        _settings(evidence),
        _hashes(evidence),
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "lib"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(sections=sections, **_headline(evidence))
    with published(args.output) as partial:
        partial.write_text(html, encoding="utf-8")


def _read(args: argparse.Namespace) -> Evidence:
    """Raises `UserError` when rows and predictions are of different corpora."""
    template = read_json(args.template)
    predictions = {row["id"]: row for row in read_jsonl(args.model_predictions)}
    rows = list(read_jsonl(args.rows))
    if {row["id"] for row in rows} != predictions.keys():
        fail(f"these are not the rows of {args.model_predictions}", "make the scores again", at=args.rows)
    return Evidence(
        settings=args.settings,
        summary=read_json(args.summary),
        metric=read_json(args.selection)["metric"],
        audit=read_json(args.audit),
        split=read_json(args.split),
        leakage=read_json(args.leakage),
        baselines=read_json(args.baselines),
        training={name: read_json(Path(path)) for name, path in args.training},
        score=read_json(args.model_score),
        examples=[(row, input_text(template, row["prompt"]), predictions[row["id"]]) for row in rows],
        timings=_timings(args.timings),
        manifests=args.manifests,
    )


def _headline(evidence: Evidence) -> dict[str, Any]:
    summary, task = evidence.summary, evidence.task
    model, selected, gate = summary["model"], summary["selected"], summary["gate"]
    quality, rival = model["test"], BASELINE[task]
    failed = [findings.check_name(check["name"]) for check in gate["checks"] if not check["passed"]]
    result = "and passed the gate" if gate["passed"] else f"but failed the gate: {findings.listed(failed)}"
    if not gate["checks"]:
        result = "and there is no gate to pass"
    cards = [
        (named(name), metric(name, quality[name]), findings.interval(name, quality)) for name in _COLUMNS[task][:2]
    ]
    cards += [
        (named(rival), metric(evidence.main, summary["baselines"][rival]["test"][evidence.main]), named(evidence.main)),
        ("Size", f"{number(model['size_mb'], 1)} MB", ""),
        ("First token", f"{number(model['first_token_ms'], 0)} ms", ""),
        ("Speed", number(model["tokens_per_second"], 1), "tokens per second"),
        ("Memory", f"{number(model['peak_rss_mb'], 0)} MB", "peak of its process"),
    ]
    return {
        "title": f"{evidence.settings['data']['target']} with {_base_name(evidence.settings['base_model'])}",
        "subtitle": f"slmflow report of a {task} model. Quality on {quality['n']:,} test rows.",
        "verdict": f"Variant {selected['variant']} of run {selected['run']} was chosen {result}.",
        "good": gate["passed"],
        "cards": cards,
        "gate": _gate_table(gate["checks"]) if gate["checks"] else None,
    }


def _gate_table(checks: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            findings.check_name(check["name"]),
            metric(check["name"].partition("_above_")[0], check["value"]),
            metric(check["name"].partition("_above_")[0], check["limit"]),
            "passed" if check["passed"] else "FAILED",
            findings.p_value(check["mcnemar_p"]) if "mcnemar_p" in check else "–",
        )
        for check in checks
    ]
    return Table("The gate, on test rows", ("Check", "Value", "Limit", "Verdict", "Paired test"), rows)


def _base_name(source: dict[str, Any]) -> str:
    return source["hub"]["id"] if source["hub"] else Path(source["path"] or source["package"]["file"]).stem


def _worth_it(evidence: Evidence) -> Section:
    summary, columns = evidence.summary, _COLUMNS[evidence.task]
    compared = {named(name): splits["test"] for name, splits in summary["baselines"].items()}
    compared |= {"Untouched base model": summary["base"]["test"], "The model": summary["model"]["test"]}
    rows = [(name, *(_measured(key, quality) for key in columns)) for name, quality in compared.items()]
    return Section(
        "worth",
        "Is it worth it?",
        [
            " ".join(findings.worth_it(evidence.task, summary, evidence.score["answered"])),
            *_quality_plot(compared, evidence.main, "The model"),
            Table(
                f"Quality on {_rows_measured(evidence, 'test')}, with 95 % intervals",
                ("", *map(named, columns)),
                rows,
                strong=len(rows) - 1,
            ),
            *_without_label_word(evidence),
        ],
    )


def _measured(name: str, quality: dict[str, Any]) -> dict[str, str]:
    """A cell with the interval below the value."""
    return {"text": metric(name, quality[name]), "note": findings.interval(name, quality)}


def _rows_measured(evidence: Evidence, split: str) -> str:
    n = evidence.summary["data"][split]
    answered = min(n, evidence.settings["evaluate"]["greedy_rows"])
    rows = findings.measured_rows(evidence.task, n, answered, split)
    return rows if evidence.task == "classification" else f"{rows} (perplexity on all of them)"


def _without_label_word(evidence: Evidence) -> list[str | Table]:
    """A model that only finds the label's word in the text has learnt nothing: how is it without?"""
    if evidence.task != "classification":
        return []
    found = evidence.baselines["extra"]["without_label_word"]["test"]
    kept = [
        row["predicted"] == row["label"] for _, text, row in evidence.examples if not word_places(row["label"], text)
    ]
    if len(kept) == len(evidence.examples):
        return ["No test row holds the word of its own label, so no score rests on that."]
    if not kept:
        return ["Every test row holds the word of its own label: finding that word would be enough."]
    rows = [(named(name), metric("accuracy", value)) for name, value in found["accuracy"].items()]
    rows.append(("The model", metric("accuracy", sum(kept) / len(kept))))
    caption = f"Accuracy on the {len(kept):,} test rows whose text does not hold the word of their own label"
    return [Table(caption, ("", "Accuracy"), rows, strong=len(rows) - 1)]


def _quality_plot(stages: dict[str, dict[str, Any]], name: str, best: str) -> list[Figure]:
    """Stages whose metric is undefined (no free answers) are left out."""
    dots = [
        plots.Dot(stage, quality[name], metric(name, quality[name]), quality[f"{name}_ci95"], stage == best)
        for stage, quality in stages.items()
        if quality[name] is not None
    ]
    caption = f"{named(name)} with its 95 % interval; the filled dot is the chosen model."
    return [Figure(plots.dot_and_whisker(dots, named(name)), caption)] if dots else []


def _how_sure(evidence: Evidence) -> Section:
    sentences = findings.how_sure(evidence.task, evidence.summary["model"]["test"], evidence.score["answered"])
    return Section("sure", "How sure is that?", [" ".join(sentences)])


def _stages(evidence: Evidence) -> Section:
    """What each stage cost in quality, size and speed, on validation rows."""
    blocks: list[str | Table | Figure] = []
    settings, base, columns = evidence.settings, evidence.summary["base"]["validation"], _COLUMNS[evidence.task]
    for run_name, facts in evidence.summary["runs"].items():
        stages = {name: stage for name, stage in facts["stages"].items() if stage["validation"]}
        measured = {"base": base, **{name: stage["validation"] for name, stage in stages.items()}}
        chosen = f"onnx-{evidence.summary['selected']['variant']}"
        chosen = chosen if evidence.summary["selected"]["run"] == run_name else ""
        draw = {"seed": settings["seed"], "samples": settings["evaluate"]["bootstrap_samples"]}
        blocks += [findings.stage_cost(evidence.task, name, measured[name], **draw) for name in stages]
        blocks += _quality_plot(measured, evidence.main, chosen)
        strong = [*measured].index(chosen) if chosen else None
        caption = f"Run {run_name}: quality on {_rows_measured(evidence, 'validation')}, with 95 % intervals"
        rows = [(name, *(_measured(key, quality) for key in columns)) for name, quality in measured.items()]
        blocks.append(Table(caption, ("Stage", *map(named, columns)), rows, strong=strong))
        blocks.append(_comparison_table(run_name, measured))
        blocks += _speed(evidence, run_name, facts["stages"], chosen)
    return Section("stages", "What did each stage cost?", blocks)


def _comparison_table(run_name: str, measured: dict[str, dict[str, Any]]) -> Table:
    rows = []
    for name, quality in measured.items():
        if against := quality["against"]:
            rows.append(
                (
                    name,
                    against["name"],
                    number(quality["flips"]),
                    number(quality["kl"], 4),
                    number(against["wins"]),
                    number(against["losses"]),
                    findings.p_value(against["mcnemar_p"]),
                )
            )
    head = ("Stage", "Against", "Flips", "KL (nats)", "Rows won", "Rows lost", "McNemar, exact")
    return Table(f"Run {run_name}: each stage against the one that it was made from, row by row", head, rows)


def _speed(
    evidence: Evidence, run_name: str, stages: dict[str, dict[str, Any]], chosen: str
) -> list[str | Table | Figure]:
    builds = {name: stage for name, stage in stages.items() if stage["size_mb"] is not None}
    rows = [
        (
            name,
            number(stage["size_mb"], 1),
            number(stage["load_s"], 2),
            number(stage["first_token_ms"], 0),
            number(stage["tokens_per_second"], 1),
            number(stage["peak_rss_mb"], 0),
            "yes" if stage["verified"] else "no",
        )
        for name, stage in builds.items()
    ]
    head = ("Stage", "Size (MB)", "Load (s)", "First token (ms)", "Tokens/s", "Peak memory (MB)", "Run here")
    strong = [*builds].index(chosen) if chosen else None
    table = Table(f"Run {run_name}: size and speed, one prompt at a time on this machine", head, rows, strong=strong)
    name = evidence.main
    points = [
        plots.Point(stage, one["size_mb"], quality[name], quality[f"{name}_ci95"], stage == chosen)
        for stage, one in builds.items()
        if (quality := one["validation"]) and quality[name] is not None
    ]
    caption = f"{named(name)} on validation rows against size: up and left is better; the filled dot is the chosen one."
    return [table, *([Figure(plots.scatter(points, "size in MB", named(name)), caption)] if points else [])]


def _selection(evidence: Evidence) -> Section:
    selected, selection = evidence.summary["selected"], evidence.settings["selection"]
    limits = [f"{name} {value:g}" for name, value in selection.items() if name != "metric" and value is not None]
    asked = (
        f"The metric was {findings.said(evidence.metric)}; the constraints were {findings.listed(limits) or 'none'}."
    )
    blocks: list[str | Table | Figure] = [
        f"{selected['run']}/{selected['variant']} was chosen: {selected['reason']}.",
        asked,
    ]
    if selected["rejected"]:
        rows = [(f"{one['run']}/{one['variant']}", one["reason"]) for one in selected["rejected"]]
        blocks.append(Table("Rejected", ("Variant", "Reason"), rows, style="wide"))
    unscored = [
        f"{run_name}/{stage.removeprefix('onnx-')}"
        for run_name, facts in evidence.summary["runs"].items()
        for stage, one in facts["stages"].items()
        if not one["validation"]
    ]
    if unscored:
        blocks.append(f"Built but not scored here, so never chosen: {findings.listed(unscored)}.")
    return Section("selection", "Why this variant?", blocks)


def _errors(evidence: Evidence) -> Section:
    if evidence.task == "generation":
        return Section("errors", "What does it get wrong?", _far_answers(evidence))
    labels, confusion = evidence.score["labels"], evidence.score["confusion"]
    most = max(max(row) for row in confusion) or 1
    shaded = [
        [label, *({"text": f"{count:,}", "grey": 255 - round(170 * count / most)} for count in row)]
        for label, row in zip(labels, confusion, strict=True)
    ]
    keys = ("precision", "recall", "f1", "support")
    classes = [(label, *(number(facts[key]) for key in keys)) for label, facts in evidence.score["per_class"].items()]
    wrong = sum(sum(row) for row in confusion) - sum(confusion[place][place] for place in range(len(labels)))
    return Section(
        "errors",
        "What does it get wrong?",
        [
            f"{wrong:,} of {evidence.score['quality']['n']:,} test rows get a wrong label.",
            Table("Confusion on test rows: true label down, predicted label across", ("", *labels), shaded, "matrix"),
            Table("By label, on test rows", ("Label", "Precision", "Recall", "F1", "Rows"), classes),
            *_wrong_examples(evidence),
        ],
    )


def _wrong_examples(evidence: Evidence) -> list[Table]:
    """The errors that the model was surest of."""
    wrong = [
        (label_shares(row["log_probs"]), text, row)
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


def _far_answers(evidence: Evidence) -> list[str | Table]:
    answered = [
        (token_f1(row["answer"], row["reference"]), text, row)
        for _, text, row in evidence.examples
        if row["answer"] is not None
    ]
    total = len(answered)
    answered = [item for item in answered if item[0] < 1]
    answered.sort(key=lambda item: item[0])
    rows = [(_cut(text), _cut(row["reference"]), _cut(row["answer"]), f"{f1:.2f}") for f1, text, row in answered]
    if not rows:
        return [f"None of the {total:,} free answers differs from its reference in a word."]
    head = ("Question", "Reference", "Answer", "Token F1")
    caption = f"The {min(len(rows), _EXAMPLES)} answers furthest from their reference, of {total:,}"
    return [Table(caption, head, rows[:_EXAMPLES], style="wide examples")]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _training(evidence: Evidence) -> Section:
    blocks: list[str | Table | Figure] = []
    for run_name, facts in evidence.training.items():
        train, validation = (
            [(point["step"], point[key]) for point in facts["curve"] if key in point] for key in ("loss", "eval_loss")
        )
        blocks.append(
            f"Run {run_name}: validation loss is lowest, {facts['best_validation_loss']:.4f}, at step"
            f" {facts['best_step']:,} of {facts['steps']:,}; that checkpoint was kept."
        )
        figure = plots.learning_curve(train, validation, facts["best_step"])
        blocks.append(Figure(figure, "Training loss (solid) and validation loss (dashed, squares)."))
        steps = sorted({point["step"] for point in facts["curve"]})
        losses = [(number(step), *(number(dict(part).get(step), 4) for part in (train, validation))) for step in steps]
        blocks.append(Table(f"Run {run_name}: losses by step", ("Step", "Training", "Validation"), losses, folded=True))
        shown = [(key.replace("_", " "), _shown(value)) for key, value in facts.items() if key != "curve"]
        blocks.append(Table(f"Run {run_name}: facts about the training", ("", "Value"), shown))
    return Section("training", "How did it learn?", blocks)


def _data(evidence: Evidence) -> Section:
    audit, data = evidence.audit, evidence.summary["data"]
    reasons = [(f"set aside: {reason.replace('_', ' ')}", number(count)) for reason, count in audit["rejected"].items()]
    rows = [("rows read", number(data["rows"])), *reasons, ("rows kept", number(data["kept"]))]
    rows += [(f"rows in {split}", number(data[split])) for split in ("train", "validation", "test")]
    rows += [
        ("near-duplicate clusters", number(audit["near_duplicate_clusters"])),
        ("rows in them", number(audit["near_duplicate_rows"])),
        ("rows in clusters of differing labels", number(audit["rows_in_mixed_clusters"])),
    ]
    lengths = [(key.replace("_", " "), _shown(value)) for key, value in audit["tokens"].items()]
    return Section(
        "data",
        "What is the data like?",
        [
            findings.leakage(evidence.leakage["rows"], evidence.leakage["threshold"]),
            Table("Rows", ("", "Rows"), rows),
            *(_classes(evidence) if evidence.task == "classification" else []),
            Table("Length in tokens, prompt and answer, before truncation", ("", "Tokens"), lengths),
        ],
    )


def _classes(evidence: Evidence) -> list[str | Table]:
    audit, by_label = evidence.audit, evidence.split["by_label"]
    words = audit["label_word_in_text"]
    rows = [
        (
            label,
            number(count),
            percent(count / audit["kept"]),
            *(number(by_label[label][split]) for split in ("train", "validation", "test")),
            percent(words["by_label"][label]),
        )
        for label, count in audit["classes"].items()
    ]
    head = ("Label", "Rows", "Share", "Train", "Validation", "Test", "Word in text")
    blocks: list[str | Table] = [
        f"{percent(words['share'])} of the texts hold the word of their own label.",
        Table("Balance of the labels", head, rows),
    ]
    if audit["keyword_shortcuts"]:
        found = [
            (one["word"], one["label"], number(one["rows"]), number(one["rows_of_label"]))
            for one in audit["keyword_shortcuts"]
        ]
        caption = "Words that nearly give a label away"
        blocks.append(Table(caption, ("Word", "Label", "Rows with it", "Of that label"), found))
    return blocks


def _timings(folder: Path) -> list[tuple[str, int, float, float | None]]:
    """For each rule below `folder` its jobs, their seconds in all, and the largest peak memory in MB.

    The files are Snakemake's benchmark tables: columns `s` and `max_rss` ("NA" or "-" for short jobs).
    """
    result = []
    for rule in sorted(path for path in folder.iterdir() if path.is_dir()):
        jobs = [row for file in sorted(rule.rglob("*.tsv")) for row in _benchmark_rows(file)]
        if jobs:
            peaks = [float(job["max_rss"]) for job in jobs if job["max_rss"] not in ("NA", "-")]
            result.append((rule.name, len(jobs), sum(float(job["s"]) for job in jobs), max(peaks, default=None)))
    return sorted(result, key=lambda item: -item[2])


def _benchmark_rows(file: Path) -> Iterable[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def _time(evidence: Evidence) -> Section:
    total = sum(seconds for _, _, seconds, _ in evidence.timings)
    rows = [
        (rule, number(jobs), number(seconds, 1), percent(seconds / total), number(peak, 0))
        for rule, jobs, seconds, peak in evidence.timings
    ]
    head = ("Rule", "Jobs", "Seconds", "Share", "Peak memory (MB)")
    text = f"All rules together took {total / 60:.1f} minutes, this report not counted."
    return Section("time", "How long did it take?", [text, Table("Seconds and memory by rule", head, rows)])


def _settings(evidence: Evidence) -> Section:
    rows = [
        (key, value if isinstance(value, str) else canonical_json(value)) for key, value in _flat(evidence.settings)
    ]
    table = Table("The whole configuration, defaults included", ("Key", "Value"), rows, style="wide code")
    return Section("settings", "What was asked?", [table])


def _hashes(evidence: Evidence) -> Section:
    rows = []
    for path in evidence.manifests:
        manifest = read_json(path)
        size = f"{len(manifest['files'])} files"
        inputs = ", ".join(sorted(manifest["inputs"])) or "–"
        rows.append((path.as_posix(), sha256_file(path), size, inputs))
    text = (
        "Each manifest holds the sha256 of its files and of the manifests that they were made from, so this chain"
        " leads from the packaged model back to base weights and rows."
    )
    head = ("Manifest", "sha256", "Covers", "Made from")
    return Section("hashes", "From which bytes?", [text, Table("Manifests", head, rows, style="wide code")])


def _flat(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield f"{prefix}{key}", inner


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return number(value) if isinstance(value, int) else str(value)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--settings", type=settings_argument, required=True, help="the whole configuration")
    for name, what in {
        "summary": "summary.json",
        "selection": "selection.json",
        "audit": "audit.json",
        "split": "split.json",
        "leakage": "leakage.json",
        "baselines": "baselines.json",
        "model-score": "score of the packaged model on test rows",
        "model-predictions": "its predictions",
        "rows": "the test rows",
        "template": "template.json",
        "timings": "folder of Snakemake's benchmark files, one folder a rule",
        "output": "report.html",
    }.items():
        arguments.add_argument(f"--{name}", type=Path, required=True, help=what)
    arguments.add_argument("--training", nargs=2, action="append", default=[], metavar=("RUN", "TRAINING"))
    arguments.add_argument("--manifests", type=Path, nargs="+", required=True, help="in the order of the table")
    run(arguments, main)
