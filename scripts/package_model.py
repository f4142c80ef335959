"""Put the selected variant together as users ship it: ONNX files, tokenizer, template, model card."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from lib.cli import fail, parser, progress, run, settings_argument
from lib.files import link_or_copy, published_directory, read_json, sha256_file, write_json
from lib.layout import results_argument
from lib.manifests import RUN_CARD, manifest_path, read_manifest, write_manifest
from lib.report.minutes import by_rule, read_jobs
from lib.run_card import run_card
from lib.selection import selected
from lib.tokenizer_check import describe_check


def main(args: argparse.Namespace) -> None:
    selection = selected(args.selection)
    onnx = args.results.folder(selection["run"], f"onnx-{selection['variant']}")
    manifest = read_manifest(onnx)
    if not manifest["verified"]:
        fail("it was never run, only built", "select a variant for the cpu provider", at=onnx)
    inputs = {
        "base": manifest_path(args.base),
        "onnx": manifest_path(onnx),
        "selection": args.selection,
        "template": args.template,
        "tokenizer": args.tokenizer,
    }
    with published_directory(args.output) as folder:
        for name in manifest["files"]:
            link_or_copy(onnx / name, folder / name)
        shutil.copyfile(args.template, folder / "template.json")
        card = model_card(
            args.settings, selection, read_json(args.template), read_manifest(args.base), manifest, inputs
        )
        manifest_path(args.output).unlink(missing_ok=True)  # an old one does not describe what comes now
        (folder / "README.md").write_text(card, encoding="utf-8")
        seconds = {one.rule: round(one.seconds, 1) for one in by_rule(read_jobs(args.timings, args.timings))}
        write_json(folder / RUN_CARD, run_card(made_by(args.settings, selection, manifest), inputs, seconds))
    facts = {key: selection[key] for key in ("run", "variant")}
    write_manifest(args.output, inputs=inputs, settings=args.settings, extra=facts)
    progress(f"package_model: {selection['run']}/{selection['variant']}, {manifest['size_bytes'] / 1e6:.1f} MB")


def made_by(settings: dict[str, Any], selection: dict[str, Any], onnx: dict[str, Any]) -> dict[str, Any]:
    """The settings that this model follows from, without those of runs and variants that were not selected."""
    general = {key: value for key, value in settings.items() if key not in ("runs", "versions")}
    chosen = selection["run"]
    return general | {
        "run": chosen,
        "seed": settings["runs"][chosen]["seed"],
        "finetune": _finetune(settings, chosen),
        "variant": {"name": selection["variant"], **onnx["settings"]["variant"]},
    }


def _finetune(settings: dict[str, Any], run_name: str) -> dict[str, Any]:
    """The section `finetune` as it is for a run."""
    common, changed = settings["finetune"], settings["runs"][run_name]["changed"]
    return {**common, **changed}


def model_card(
    settings: dict[str, Any],
    selection: dict[str, Any],
    template: dict[str, Any],
    base: dict[str, Any],
    onnx: dict[str, Any],
    inputs: dict[str, Path],
) -> str:
    """README.md of the model: what it does, what it is made of, why this variant, hashes."""
    labels = template["labels"]
    asked = f"one of {', '.join(labels)}" if labels else "a free answer"
    rejected = [f"- {one['run']}/{one['variant']} was not chosen: {one['reason']}" for one in selection["rejected"]]
    variant = {key: value for key, value in onnx["settings"]["variant"].items() if value is not None}
    sections = [
        f"# A small language model for {settings['task']}",
        f"Given {', '.join(template['columns'])}, it answers with {asked}. It runs in ONNX Runtime GenAI.",
        "## Use",
        'With slmflow: `python scripts/predict.py --model FOLDER "text"`. `template.json` says how an input becomes a'
        f" prompt (inputs and answer take at most {template['max_length']} tokens) and `genai_config.json` where the"
        f" model stops; decoding is greedy. {describe_check(read_json(inputs['tokenizer']))}",
        "## Base model",
        _list(settings["base_model"]) + _provenance(base),
        "## Fine-tuning",
        _list(_finetune(settings, selection["run"])),
        "## Build",
        _list(
            {**variant, "grid of the quantized weights": onnx["grid"], "size in MB": round(onnx["size_bytes"] / 1e6, 1)}
        ),
        "## How it was chosen",
        "\n".join([f"{selection['run']}/{selection['variant']}: {selection['reason']}.", "", *rejected]).strip(),
        "## Scores",
        "The numbers above are of validation rows. The test rows are scored once, after this folder is made and from"
        " its files: see `scores/model.test.json` and `report.html` of the run that made it.",
        "## Where, when and by what it was made",
        f"`{RUN_CARD}`: configuration, commit, versions, machine.",
        "## Hashes (sha256)",
        _list({name: sha256_file(path) for name, path in inputs.items()} | onnx["files"]),
    ]
    return "\n\n".join(sections) + "\n"


def _provenance(base: dict[str, Any]) -> str:
    stored = base.get("weights_were_quantized")
    if not stored:
        return ""
    return (
        f"\n\nIts weights had been quantized to {stored} by those who published it and were dequantised before"
        " fine-tuning: what they lost then is lost here too."
    )


def _list(facts: dict[str, Any], before: str = "") -> str:
    """Markdown list of settings, nested ones by dotted name; null is left out."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.append(_list(value, f"{before}{key}."))
        elif value is not None:
            lines.append(f"- {before}{key}: {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument(
        "--settings",
        type=settings_argument,
        required=True,
        help="task, data, base_model, finetune, ...; runs: of each its seed and what it has changed in finetune",
    )
    arguments.add_argument("--selection", type=Path, required=True, help="selection.json")
    results_argument(arguments)
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="corpus/onnx_tokenizer.json")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--timings", type=Path, required=True, help="folder of Snakemake's benchmark files")
    arguments.add_argument(
        "--output", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
