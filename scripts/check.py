"""Say what a run will do, take and cost before it starts: rows, training, time, memory and disk of each rule.

    python scripts/check.py --configfile mine.yaml [--profile profiles/slurm] [--json]

Reads configuration and rows with the rules' own scripts, in a folder of its own, and no weights of a model. Further
arguments go to Snakemake as they are. Exits with 1 when the configuration or the rows would stop the run, or when a job
does not fit into this machine.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from run import check_configuration

from lib.core.cli import UserError, format_error
from lib.core.escaping import escape_controls
from lib.data.first_look import describe_rows, sample_rows
from lib.hardware import resources
from lib.hardware.memory import measure_available_mb
from lib.hardware.speed import Speed, SpeedTest
from lib.workflow.plan import PlannedJob, list_jobs, read_workflow
from lib.workflow.plan_estimates import (
    Settings,
    count_steps,
    estimate_jobs,
    find_problems,
    read_model_checks,
    read_model_sizes,
    sum_jobs,
)
from lib.workflow.plan_text import format_plan

# The rules that end in a corpus, in their order.
_ROWS = ("fetch_tweets", "fetch_data", "fetch_tokenizer", "audit_data", "split_data", "render_corpus")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args, given = arguments.parse_known_args()
    is_given = any(word.split("=")[0] in ("--cores", "-c", "--profile") for word in given)
    speed = SpeedTest()
    try:
        check_configuration(given)
        read_workflow([*([] if is_given else ["--cores", "all"]), *given], partial(show, args, speed))
    except UserError as error:
        sys.exit(format_error(error))
    finally:
        speed.stop()


def show(args: argparse.Namespace, speed_test: SpeedTest, workflow: Any, is_local: bool) -> None:
    """Print the plan of a workflow whose jobs are known, and leave with 1 when something would stop the run."""
    jobs = list_jobs(workflow)
    results, config = Path(workflow.globals["R"]), workflow.globals["CONFIG"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            look = describe_rows_of_run(jobs, Path(scratch), config.seed)
        except UserError as error:
            print(escape_controls(str(error)), file=sys.stderr)
            _leave(1)
    speed = speed_test.measure() if is_local else None
    expected = resources.EXPECTED
    expected.sizes_mb = {f"{results}/corpus/{name}.jsonl": size for name, size in look["sizes"].items()}
    expected.sizes_mb |= {f"{results}/data/{name}.jsonl": look["rows_mb"] for name in ("rows", "kept")}
    expected.longest = look["tokens"]["max"]
    expected.row_bytes = look["tokens"]["mean"] * resources.TOKEN_BYTES
    expected.shared = look["shared"]
    expected.answer_tokens, expected.vocabulary = look["answer_tokens"], look["vocabulary"]
    expected.auto_bytes = 2 if speed and speed.auto_dtype == "bfloat16" else 4
    settings = Settings(
        results=results,
        parameters=config.base_model.parameters,
        weight_bytes=look["weight_bytes"],
        runs={name: run.finetune for name, run in config.runs.items() if run.trained},
        variants=workflow.globals["VARIANTS"],
    )
    plan = build_plan(list_jobs(workflow), settings, look, speed)
    problems = find_problems(plan["jobs"], measure_available_mb(), results) if is_local else []
    said = json.dumps(plan | {"problems": problems}, indent=2) if args.json else format_plan(plan)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads it with `| head` has seen enough
    print(*(escape_controls(line) for line in said.splitlines()), sep="\n")
    for problem in problems:
        print(escape_controls(format_error(problem)), file=sys.stderr)
    _leave(1 if problems else 0)


def build_plan(
    jobs: Sequence[PlannedJob], settings: Settings, look: dict[str, Any], speed: Speed | None
) -> dict[str, Any]:
    """Return all that is told, as `--json` prints it."""
    estimated = estimate_jobs(jobs, settings, speed)
    return {
        "rows": {
            name: value
            for name, value in look.items()
            if name not in ("sizes", "rows_mb", "weight_bytes", "answer_tokens", "vocabulary", "shared")
        },
        "trainings": {name: count_steps(finetune, look) for name, finetune in settings.runs.items()},
        "model_checks": read_model_checks(jobs, settings.results),
        "jobs": estimated,
        "done": sum(job.is_done for job in jobs),
        "total": sum_jobs(estimated),
        "speed": speed and speed._asdict(),
    }


def _leave(code: int) -> NoReturn:
    """End at once: Snakemake would say more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe_rows_of_run(jobs: Sequence[PlannedJob], scratch: Path, seed: int) -> dict[str, Any]:
    """Return what the rows are like, from the results where they are there, else made in `scratch`.

    Of many rows a sample is drawn by the seed. Raises `UserError` with the line of the script that
    refuses them.
    """
    by_rule = {job.rule: job for job in jobs}
    places: dict[str, str] = {}
    sample = None
    for rule in _ROWS:
        if rule not in by_rule:
            continue
        job = by_rule[rule]
        if not job.is_done or (sample and rule != "fetch_tokenizer"):
            run_elsewhere(job, places, scratch)
        if rule == "fetch_data":
            rows = Path(places.get(job.outputs[0], job.outputs[0]))
            sample = sample_rows(rows, scratch / "sample.jsonl", seed)
            if sample:
                places[job.outputs[0]] = str(scratch / "sample.jsonl")
    found = {Path(name).name: Path(places.get(name, name)) for rule in _ROWS[1:] for name in by_rule[rule].outputs}
    tokenizer = by_rule["fetch_tokenizer"].outputs[0]
    return describe_rows(found, sample) | read_model_sizes(Path(places.get(tokenizer, tokenizer)))


def run_elsewhere(job: PlannedJob, places: dict[str, str], scratch: Path) -> None:
    """Run the script of a job with what it writes in `scratch`; `places` says where files lie, and learns of these.

    Raises `UserError` with the script's own error line.
    """
    for name in (*job.outputs, job.log):
        places[name] = str(scratch / job.rule / Path(name).name)
    (scratch / job.rule).mkdir(exist_ok=True)
    words = [places.get(word, word) for word in job.command]
    words = words[words.index("python") + 1 :]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, errors="replace")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        said = errors[-1] if errors else f"error: {job.rule}: it ended with code {done.returncode}"
        for name, place in places.items():
            said = said.replace(place, name)
        raise UserError(said)


if __name__ == "__main__":
    main()
