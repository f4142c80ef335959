"""Package the selected model as it ships: the folder that the test rows scored, with its model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.core.cli import NO_TELEMETRY, build_parser, report_progress, run
from lib.core.escaping import escape_markdown
from lib.core.files import publish_directory, read_json
from lib.data.tokenizer_check import describe_check
from lib.data.trained_chat_template import CHAT_TEMPLATE
from lib.evaluation.registry import MAIN_METRIC
from lib.evaluation.selection import load_selection
from lib.onnx.packaged import read_genai_config, read_packaged_template
from lib.provenance.manifests import (
    RUN_CARD,
    build_manifest_path,
    link_files,
    load_manifest,
    read_manifest,
    write_manifest,
)
from lib.provenance.notices import find_notices
from lib.report.findings import describe_probabilities
from lib.report.formatting import format_interval, format_metric, format_term
from lib.report.hub_card import render_hub_metadata


def main(args: argparse.Namespace) -> None:
    manifest, template = read_manifest(args.assembled), read_packaged_template(args.assembled)
    read_genai_config(args.assembled)
    inputs = {
        "assembled": build_manifest_path(args.assembled),
        "base": args.base_manifest,
        "selection": args.selection,
        "summary": args.summary,
    }
    with publish_directory(args.output) as folder:
        link_files(args.assembled, (*manifest["files"], RUN_CARD), folder)
        card = render_model_card(
            manifest,
            load_selection(args.selection),
            template,
            load_manifest(args.base_manifest),
            read_json(args.summary),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    facts = {key: manifest[key] for key in ("run", "variant")}
    write_manifest(args.output, inputs=inputs, settings={}, extra=facts)
    report_progress(f"package_model: {manifest['run']}/{manifest['variant']}, {manifest['size_bytes'] / 1e6:.1f} MB")


def render_model_card(
    model: dict[str, Any],
    selection: dict[str, Any],
    template: dict[str, Any],
    base: dict[str, Any],
    summary: dict[str, Any],
) -> str:
    """Write README.md of the model: what hubs read, verdict, what it does and is made of, scores, hashes.

    model: manifest of the assembled folder. base: that of the base model.
    """
    settings, labels = model["made_by"], template["labels"]
    answer = f"one of {_join_escaped(labels)}" if labels else "a free answer"
    rejected = [f"- {_name(one)} was not chosen: {escape_markdown(one['reason'])}" for one in selection["rejected"]]
    variant = settings["variant"]
    size_mb = round(model["size_bytes"] / 1e6, 1)
    sections = [
        f"# A small language model for {settings['task']}",
        f"Given {_join_escaped(template['columns'])}, it answers with {answer}. It runs in ONNX Runtime GenAI.",
        f"**{escape_markdown(summary['verdict']['text'])}**",
        "## Use",
        'With slmflow: `python scripts/predict.py --model FOLDER "text"`. `template.json` says how an input becomes a'
        f" prompt (inputs and answer take at most {template['max_length']} tokens) and `genai_config.json` where the"
        f" model stops; decoding is greedy. {escape_markdown(describe_check(summary['tokenizer']))}",
        *filter(None, [_probabilities(template, summary)]),
        f"`{CHAT_TEMPLATE}` renders the trained prompt from one turn of the user, for programs that know only chats.",
        f"ONNX Runtime reports its use to its maker unless `{NO_TELEMETRY[0]}=1` is set before it is loaded;"
        " slmflow's own programs set it.",
        "## Base model",
        _list(settings["base_model"]) + _provenance(base),
        "## Fine-tuning",
        _list(settings["finetune"]),
        "## Build",
        _list({**variant, "grid of the quantized weights": model["grid"], "size in MB": size_mb}),
        "## How it was chosen",
        "\n".join([f"{_name(selection)}: {escape_markdown(selection['reason'])}.", "", *rejected]).strip(),
        "These numbers are of validation rows.",
        "## Scores on the test rows",
        _scores(settings["task"], summary),
        "## Licenses",
        "The licenses of the base model and of the rows that this model was made from may set conditions for its use.",
        *filter(None, [_list(find_notices(settings))]),
        "## Where, when and by what it was made",
        f"`{RUN_CARD}`: configuration, commit, versions, machine.",
        "## Hashes (sha256)",
        _list(model["inputs"] | model["files"]),
    ]
    return render_hub_metadata(settings, summary) + "\n\n".join(sections) + "\n"


def _probabilities(template: dict[str, Any], summary: dict[str, Any]) -> str:
    """Say how probabilities become those of `template.json`, and what the threshold is worth; empty without any."""
    if "temperature" not in template:
        return ""
    found = summary["probabilities"]
    return (
        "Probabilities are those of the labels among each other, their log probabilities divided by the temperature in"
        f" `template.json`. {escape_markdown(describe_probabilities(found))}"
    )


def _scores(task: str, summary: dict[str, Any]) -> str:
    """List the main metric of the model, the baselines and the untouched base, with their intervals."""
    name = MAIN_METRIC[task]
    stages = {"this model": summary["model"], **summary["baselines"], "base": summary["base"]}
    lines = [
        f"- {escape_markdown(format_term(stage))}: {format_term(name)} {format_metric(name, splits['test'][name])}, 95"
        f" % interval {format_interval(name, splits['test']) or 'unknown'}"
        for stage, splits in stages.items()
    ]
    return "\n".join([f"{summary['model']['test']['n']:,} rows, scored once:", "", *lines])


def _name(model: dict[str, Any]) -> str:
    return escape_markdown(f"{model['run']}/{model['variant']}")


def _join_escaped(names: Sequence[str]) -> str:
    return ", ".join(map(escape_markdown, names))


def _provenance(base: dict[str, Any]) -> str:
    stored = base.get("weights_were_quantized")
    if not stored:
        return ""
    return (
        f"\n\nIts weights had been quantized to {escape_markdown(stored)} by those who published it and were"
        " dequantized before fine-tuning: what they lost then is lost here too."
    )


def _list(facts: dict[str, Any], before: str = "") -> str:
    """Return Markdown list of settings, nested ones by dotted name; null is left out."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.append(_list(value, f"{before}{key}."))
        elif value is not None:
            lines.append(f"- {escape_markdown(f'{before}{key}')}: {escape_markdown(value)}")
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--assembled", type=Path, required=True, help="folder that assemble_model wrote")
    arguments.add_argument("--selection", type=Path, required=True, help="selection.json")
    arguments.add_argument("--base-manifest", type=Path, required=True, help="base.manifest.json")
    arguments.add_argument("--summary", type=Path, required=True, help="summary.json")
    arguments.add_argument(
        "--output", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
