"""Put the selected variant together: ONNX files, tokenizer, template, run card. The test rows score this folder.

What ships is this folder with its model card, which states the verdict on the test rows: see `package_model`.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from lib.core.cli import build_parser, fail, parse_settings, report_progress, run
from lib.core.files import publish_directory, read_json, write_json
from lib.core.layout import add_results_argument
from lib.data.corpus import load_template
from lib.data.templates import Template, render
from lib.data.trained_chat_template import CHAT_TEMPLATE, render_trained_chat_template, split_around_columns
from lib.evaluation.selection import load_selection
from lib.provenance.manifests import RUN_CARD, build_manifest_path, link_files, read_manifest, write_manifest
from lib.provenance.run_card import run_card
from lib.report.timings import read_jobs, sum_by_rule


def main(args: argparse.Namespace) -> None:
    selection = load_selection(args.selection)
    onnx = args.results.folder(selection["run"], f"onnx-{selection['variant']}")
    manifest = read_manifest(onnx)
    if not manifest["verified"]:
        fail("it was never run, only built", "select a variant for the cpu provider", at=onnx)
    inputs = {
        "base": build_manifest_path(args.base),
        "onnx": build_manifest_path(onnx),
        "selection": args.selection,
        "template": args.template,
        **({"temperature": args.temperature} if args.temperature else {}),
    }
    made_by = select_settings(args.settings, selection, manifest)
    with publish_directory(args.output) as folder:
        link_files(onnx, sorted(manifest["files"].keys() - {CHAT_TEMPLATE}), folder)
        write_template(folder, load_template(args.template), args.temperature)
        write_files_for_others(folder, load_template(args.template), args.base)
        seconds = {one.rule: round(one.seconds, 1) for one in sum_by_rule(read_jobs(args.timings, args.timings))}
        write_json(folder / RUN_CARD, run_card(made_by, inputs, seconds))
    facts = {"run": selection["run"], "variant": selection["variant"], "made_by": made_by, "grid": manifest["grid"]}
    write_manifest(args.output, inputs=inputs, settings=args.settings, extra=facts)
    report_progress(f"assemble_model: {selection['run']}/{selection['variant']}, {manifest['size_bytes'] / 1e6:.1f} MB")


def write_template(folder: Path, template: Template, temperature: Path | None) -> None:
    """Write template.json with what corrects the probabilities, and with the threshold below which it is unsure."""
    found = read_json(temperature) if temperature else {}
    corrected = {key: found[key] for key in ("temperature", "decision", "threshold", "coverage") if key in found}
    write_json(folder / "template.json", {**template, **corrected})


def write_files_for_others(folder: Path, template: Template, base: Path) -> None:
    """Write what programs other than slmflow's go by: the chat template, configurations, Foundry Local's prompt."""
    (folder / CHAT_TEMPLATE).write_text(render_trained_chat_template(template), encoding="utf-8")
    drop_chat_template(folder / "tokenizer_config.json")
    shutil.copyfile(base / "config.json", folder / "config.json")
    ids = read_json(base / "generation_config.json")
    special = {key: ids[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if ids.get(key) is not None}
    write_json(folder / "generation_config.json", {"do_sample": False, **special})
    if "conversation" not in template:
        before, _, behind = split_around_columns(template["prompt"])
        prompt = f"{render(before, {})}{{Content}}{render(behind, {})}"
        prompts = {"assistant": "{Content}", "prompt": prompt}
        write_json(folder / "inference_model.json", {"Name": "slmflow:1", "PromptTemplate": prompts})


def drop_chat_template(file: Path) -> None:
    """Take the base model's chat template out of tokenizer_config.json, where some programs look first."""
    config = read_json(file)
    if config.pop("chat_template", None) is not None:
        file.unlink()  # a link to the build's
        write_json(file, config)


def select_settings(settings: dict[str, Any], selection: dict[str, Any], onnx: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that this model follows from, without those of runs and variants that were not selected."""
    general = {key: value for key, value in settings.items() if key not in ("runs", "versions")}
    chosen = settings["runs"][selection["run"]]
    return general | {
        "run": selection["run"],
        "seed": chosen["seed"],
        "finetune": settings["finetune"] | chosen["swept"],
        "variant": {"name": selection["variant"], **onnx["settings"]["variant"]},
    }


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument(
        "--settings",
        type=parse_settings,
        required=True,
        help="task, data, base_model, finetune, ...; runs: the seed and the swept keys of each",
    )
    arguments.add_argument("--selection", type=Path, required=True, help="selection.json")
    add_results_argument(arguments)
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument("--temperature", type=Path, help="temperature.json, with task classification")
    arguments.add_argument("--base", type=Path, required=True, help="folder of the base model")
    arguments.add_argument("--timings", type=Path, required=True, help="folder of Snakemake's benchmark files")
    arguments.add_argument(
        "--output", type=Path, required=True, help="folder to write; its manifest is written last, beside it"
    )
    run(arguments, main)
