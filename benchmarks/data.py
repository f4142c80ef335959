"""Time and memory of the data rules on many rows: fetch, audit, split, corpus, leakage check.

    python benchmarks/data.py --rows 100000 200000 1000000 --table benchmarks/data.md

The rows are made up of the demo's words, with repeats, near-repeats, conflicts, letters of one form and
broken lines planted; then the real scripts run one after the other. Needed: the demo's rows and base
model (`make run`, or its rules fetch_tweets and fetch_model). The rows are always the same.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import SCRIPTS, machine, markdown_table, write_table

CLASSES = ["negative", "neutral", "positive"]
DATA = {
    "target": "sentiment",
    "labels": CLASSES,
    "special_tokens": "reject",
    "near_duplicates": 0.8,
    "min_rows_per_class": 10,
}
CORPUS = {
    "text_template": "Tweet: {text}\nSentiment:\n{sentiment}",
    "max_length": 256,
    "truncation": "right",
}
_LOOK = 0.5  # seconds between two looks at the memory
CHAIN = ("audit_data", "split_data", "render_corpus", "check_leakage")


class Cost(NamedTuple):
    """Wall and CPU seconds of one script, and the highest memory of it and its processes together, in MB."""

    wall: float
    cpu: float
    peak: float


def made_up_rows(count: int, words: list[str]) -> Iterator[dict[str, Any]]:
    """Texts of 5 to 150 words, half of them up to 30; 3 in 100 words occur nowhere else.

    Of 100 rows 3 repeat an earlier one, 5 nearly, 1 contradicts it, 2 are letters of one of 20 forms.
    """
    rng = random.Random(20)
    forms = [rng.choices(words, k=40) for _ in range(20)]
    earlier: list[dict[str, Any]] = []
    for number in range(count):
        length = min(150, max(5, round(rng.lognormvariate(3.4, 0.7))))
        chosen = [word if rng.random() > 0.03 else f"{word}{number}" for word in rng.choices(words, k=length)]
        row = {"id": number, "text": " ".join(chosen), "sentiment": rng.choice(CLASSES)}
        kind = rng.random()
        if kind < 0.11 and earlier:
            old = rng.choice(earlier)
            text = old["text"].split(" ")
            if kind < 0.05:
                text[rng.randrange(len(text))] = rng.choice(words)
            row["text"] = " ".join(text).upper() if kind < 0.02 else " ".join(text)
            row["sentiment"] = rng.choice(CLASSES) if 0.08 <= kind < 0.09 else old["sentiment"]
            if kind >= 0.09:
                row["text"] = " ".join([*rng.choice(forms), *chosen[:12]])
        if len(earlier) < 5000:
            earlier.append(row)
        else:
            earlier[rng.randrange(5000)] = row
        yield row


def write_rows(path: Path, count: int, words: list[str]) -> None:
    """JSON Lines, one line in 1000 cut."""
    with open(path, "w", encoding="utf-8") as file:
        for number, row in enumerate(made_up_rows(count, words)):
            line = json.dumps(row, ensure_ascii=False)
            file.write((line[:-5] if number % 1000 == 500 else line) + "\n")


def cost(script: str, *words: object) -> Cost:
    """Run one of the project's scripts."""
    texts = [json.dumps(word) if isinstance(word, dict) else str(word) for word in words]
    start = os.times().elapsed
    process = subprocess.Popen([sys.executable, str(SCRIPTS / f"{script}.py"), *texts])
    peak, pid = 0.0, 0
    while not pid:
        peak = max(peak, measure_memory(process.pid))
        time.sleep(_LOOK)
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = status
    if status:
        sys.exit(f"error: {script} failed")
    peak = max(peak, used.ru_maxrss * 1024 / 1e6)  # of one process, also between two looks
    return Cost(os.times().elapsed - start, used.ru_utime + used.ru_stime, peak)


def measure_memory(pid: int) -> float:
    """Return the MB of a process and those it started; what they share counts once."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        tasks = [task.read_text(encoding="ascii") for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ends
        return 0.0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own * 1024 / 1e6 + sum(measure_memory(int(child)) for task in tasks for child in task.split())


def costs(count: int, words: list[str], base: Path) -> dict[str, Cost]:
    """Cost of each data rule on `count` rows."""
    with tempfile.TemporaryDirectory() as folder:
        place = {name: Path(folder) / name for name in ("rows", "audit", "rejected", "kept", "split", "leakage")}
        raw = Path(folder) / "raw.jsonl"
        write_rows(raw, count, words)
        files = [word for name in ("train", "validation", "test") for word in (f"--{name}", Path(folder) / name)]
        files += ["--template", Path(folder) / "template"]
        audited = ("--audit", place["audit"], "--kept", place["kept"])
        settings = {"task": "classification", "data": DATA, "corpus": CORPUS}
        shares = {"seed": 0, "task": "classification", "split": {"validation": 0.1, "test": 0.15, "leakage": "error"}}
        processes = ("--processes", os.cpu_count())
        source = {"source": {"files": ["raw.jsonl"]}, "unreadable": "reject"}
        return {
            "fetch_data": cost("fetch_data", "--settings", source, "--files", raw, "--output", place["rows"]),
            "audit_data": cost(
                "audit_data",
                *("--settings", settings, "--rows", place["rows"], "--tokenizer", base),
                *(*audited, "--rejected", place["rejected"]),
                *processes,
            ),
            "split_data": cost("split_data", "--settings", shares, *audited, "--output", place["split"]),
            "render_corpus": cost(
                "render_corpus",
                *("--settings", settings, *audited, "--split", place["split"], "--tokenizer", base, *files),
                *processes,
            ),
            "check_leakage": cost(
                "check_leakage",
                "--settings",
                {"near_duplicates": 0.8, "leakage": "error"},
                *files,
                "--output",
                place["leakage"],
                *processes,
            ),
        }


def main(args: argparse.Namespace) -> None:
    words = [word for row in json.loads(args.tweets.read_text(encoding="utf-8")) for word in row["text"].split()]
    lines = []
    for count in args.rows:
        found = costs(count, words, args.base)
        chain = [found[name] for name in CHAIN]
        together = Cost(sum(c.wall for c in chain), sum(c.cpu for c in chain), max(c.peak for c in chain))
        for name, each in [*found.items(), ("from audit to leakage check", together)]:
            lines.append([f"{count:,}", name, f"{each.wall:.0f}", f"{each.cpu:.0f}", f"{each.peak:,.0f}"])
    head = ["rows", "rule", "wall s", "CPU s", "peak MB"]
    command = "python benchmarks/data.py --rows " + " ".join(map(str, args.rows))
    title = f"# Data rules on many rows\n\n`{command}`\n\n{machine('numpy', 'tokenizers')}\n"
    note = f"\n{args.note}\n" if args.note else ""
    write_table(args.table, f"{title}{note}\n{markdown_table(head, lines)}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="+", default=[100_000, 200_000])
    arguments.add_argument("--base", type=Path, default=Path("results/base"), help="folder of the base model")
    arguments.add_argument("--tweets", type=Path, default=Path("data/raw/tweets.json"), help="the demo's rows")
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/data.md"), help="file to write")
    arguments.add_argument("--note", default="", help="a sentence to put above the table")
    main(arguments.parse_args())
