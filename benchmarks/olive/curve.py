"""The recipe that slmflow replaces, converted: its loss curve beside the one of Olive's own settings, on a tiny Phi-3.

    PYTHONPATH=tests .venv/bin/python benchmarks/olive/curve.py

Both sides train a random Phi-3 of two layers on the same rows of data/tones.json: Olive 0.13 by seed.json with the
modules, order and steps of the recipe's page, slmflow by what `import_olive.py` makes of that file. Olive trains once
as it is, and once on the texts that slmflow writes: its own begin and end in other special tokens, and blank lines
stand between its rows. Each way runs with several seeds, which choose rows, dropout and the adapter's first values.
Prints the tables of olive.md.
"""

import argparse
import ast
import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import run as beside  # the benchmark in this folder: adds the paths of scripts and benchmarks
import yaml
from bench import machine, markdown_table
from first_look import copy_project
from models.families import FAMILIES, write_description, write_tiny_model

from lib.core.files import read_json, read_jsonl
from lib.olive.convert import convert_document
from lib.olive.document import read_document

BLOCK = 2048
# What the recipe's page says otherwise than seed.json, which trains another model as long as slmflow's tones.yaml.
PAGE = {"target_modules": ["o_proj", "qkv_proj"]}
RUNS: dict[str, dict[str, Any]] = {
    "As it stands": {},
    "40 steps with a learning rate of 1e-3": {"max_steps": 40, "learning_rate": 1e-3, "eval_steps": 40},
}
PAGE_ARGUMENTS = {"max_steps": 10, "group_by_length": True, "per_device_eval_batch_size": 1, "eval_steps": 10}


def write_model(folder: Path) -> int:
    """Write a random Phi-3 of two layers with the hub's flags; return its number of parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lib.models.small_config import shrink_config

    (family,) = (one for one in FAMILIES if one.name == "phi3_4k")
    write_description(family, folder.with_name("description"))
    config = AutoConfig.from_pretrained(folder.with_name("description"))
    small = shrink_config(config, positions=2 * BLOCK)
    small.sliding_window = config.sliding_window
    write_tiny_model(family, folder, small)
    return int(AutoModelForCausalLM.from_pretrained(folder).num_parameters())


def write_recipe(changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return seed.json as the recipe's page has it, and with `changes` of its training arguments."""
    recipe: dict[str, Any] = read_json(beside.HERE / "seed.json")
    lora = recipe["passes"]["lora"]
    lora |= PAGE
    lora["training_args"] |= PAGE_ARGUMENTS | changes | {"seed": seed}
    return recipe


def train_slmflow(project: Path, parameters: int, recipe: dict[str, Any]) -> tuple[Path, list[float]]:
    """Convert the recipe, train by Snakemake; return the results' folder and the loss of each step."""
    (project / "olive.json").write_text(json.dumps(recipe))
    converted = convert_document(read_document(project / "olive.json"), "olive.json")
    values = yaml.safe_load(converted.text)
    values["base_model"] = {"path": "base", "parameters": parameters}
    values["data"]["files"] = ["data/tones.json"]
    values["results"] = "results"
    (project / "mine.yaml").write_text(json.dumps(values))
    results = project / values["results"]
    training = results / "runs/lora/training.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", "mine.yaml", "--"]
    done = subprocess.run([*command, str(training.relative_to(project))], cwd=project, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return results, [entry["loss"] for entry in read_json(training)["curve"] if "loss" in entry]


def train_olive(olive: Path, work: Path, project: Path, results: Path, recipe: dict[str, Any]) -> list[float]:
    """Run the training pass of the recipe on slmflow's training rows; return the loss of each step."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "recipe.json").write_text(json.dumps(recipe | {"passes": {"lora": recipe["passes"]["lora"]}}))
    (work / "base").symlink_to((project / "base").resolve())
    if "{text}" in recipe["data_configs"][0]["pre_process_data_config"]["text_template"]:
        end = recipe["data_configs"][0]["pre_process_data_config"]["joiner"]
        texts = (row["prompt"] + row["completion"] for row in read_jsonl(results / "corpus/train.jsonl"))
        rows = [{"text": text.removesuffix(end)} for text in texts]
        (work / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        beside.write_train_rows(results, work / "train.json")
    beside.measure_run([str(olive), "run", "--config", "recipe.json"], work)
    said = re.findall(r"\{'loss': [^}]*\}", (work / "log.txt").read_text())
    return [float(ast.literal_eval(line)["loss"]) for line in said]


def use_texts_of_slmflow(recipe: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return a recipe that trains on whole texts with nothing between them but their end token.

    An empty `joiner` would become the path of the recipe's folder.
    """
    changed = copy.deepcopy(recipe)
    options = changed["data_configs"][0]["pre_process_data_config"]
    end = str(read_json(base / "tokenizer_config.json")["eos_token"])
    options |= {"text_template": "{text}", "add_special_tokens": False, "joiner": end}
    return changed


def format_losses(losses: list[float]) -> str:
    return f"{fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def compare(curves: list[list[list[float]]]) -> list[list[str]]:
    """Return a line for some of the steps: the mean loss of each way over its seeds and their range; and how much the
    last way is above the one before, in hundredths, over all steps up to here.

    curves: of each way, of each seed, the loss of each step.
    """
    steps = len(curves[0][0])
    assert all(len(curve) == steps for way in curves for curve in way)
    lines = []
    for step in sorted({*range(0, steps, math.ceil(steps / 10)), steps - 1}):
        losses = [[curve[step] for curve in way] for way in curves]
        before, last = (fmean(fmean(curve[: step + 1]) for curve in way) for way in curves[-2:])
        lines.append([str(step + 1), *map(format_losses, losses), f"{100 * (last / before - 1):+.2f} %"])
    return lines


def main(args: argparse.Namespace) -> None:
    olive = beside.environment(args.work / "olive-env")
    place = args.work / "olive/curve"
    shutil.rmtree(place, ignore_errors=True)
    project = place / "project"
    project.mkdir(parents=True)
    copy_project(beside.ROOT, project)
    parameters = write_model(project / "base")
    head = ["step", "Olive 0.13", "Olive, texts of slmflow", "slmflow, converted", "slmflow against Olive, same texts"]
    print(machine("torch", "transformers", "peft"))
    print(f"{parameters:,} parameters, {args.seeds} seeds: mean loss (lowest to highest).")
    for name, changes in RUNS.items():
        curves: list[list[list[float]]] = [[], [], []]
        for seed in range(args.seeds):
            recipe = write_recipe(changes, seed)
            results, ours = train_slmflow(project, parameters, recipe)
            for way, changed in enumerate((recipe, use_texts_of_slmflow(recipe, project / "base"))):
                curves[way].append(train_olive(olive, place / "olive", project, results, changed))
            curves[2].append(ours)
            shutil.rmtree(results)
        print(f"\n{name}:\n\n{markdown_table(head, compare(curves))}", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--work", type=Path, default=beside.ROOT / "work", help="where the environment and runs are kept"
    )
    arguments.add_argument("--seeds", type=int, default=2, help="trainings of each way")
    main(arguments.parse_args())
