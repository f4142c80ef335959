"""Time and memory of the data rules on rows that somebody made to hurt them.

    python benchmarks/data_attacks.py --base results/base --table benchmarks/data.md

Cases: crowds of texts that share 24 of 29 words, just below the similarity at which they count as one (of 12,500 and
100,000 texts); 50,000 labels of 3 rows; one value of 20 MB, cut or set aside; objects and CSV heads with a key twice;
Parquet files of some KB with a value of 1 GB. Needed: a base model, whose tokenizer reads the rows.

The table replaces the last section of the file, from its title on; where there is no such section, it is added.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import SCRIPTS, machine, markdown_table

from data import CORPUS, Cost

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYLLABLES = re.findall("..", "baerforarahinistojukalomanneorprequrestatiunverwoingmenlyalesou")
TITLE = "## Rows that were made to hurt"
DATA = {
    "target": "sentiment",
    "special_tokens": "reject",
    "near_duplicates": 0.8,
    "min_rows_per_class": 1,
    "max_rejected": 1,
}
EVALUATE = {"bootstrap_samples": 1000, "greedy_rows": 100}
SPLITS = ("train", "validation", "test")


def made_up_words(rng: random.Random, count: int, length: int = 6) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=length)) for _ in range(count)]


def spoken_words(rng: random.Random, count: int, syllables: tuple[int, ...] = (1, 2, 2, 3, 3)) -> list[str]:
    """Words of a tokenizer's kind: of syllables, short ones oftener than once."""
    return ["".join(rng.choices(SYLLABLES, k=rng.choice(syllables))) for _ in range(count)]


def crowd(count: int, vocabulary: int) -> Iterator[dict[str, Any]]:
    """Yield texts that share 24 of 29 words; the other 5 are of a vocabulary, or of their own where that is 0."""
    rng = random.Random(20)
    form, words = made_up_words(rng, 24), made_up_words(rng, vocabulary)
    for number in range(count):
        own = rng.choices(words, k=5) if words else made_up_words(rng, 5)
        yield {"text": " ".join(form + own), "sentiment": f"class {number % 3}"}


def many_labels(labels: int) -> Iterator[dict[str, Any]]:
    """Yield three rows of each label: 12 words of 20,000, and in two of three the word of the label."""
    rng = random.Random(21)
    words, found = spoken_words(rng, 20_000), dict[str, None]()
    while len(found) < labels:
        found.update(dict.fromkeys(spoken_words(rng, labels - len(found), (4,))))
    names = sorted(found)
    for number in range(3 * labels):
        name = names[number // 3]
        yield {"text": " ".join([*rng.choices(words, k=12), *[name] * (number % 3 > 0)]), "sentiment": name}


def long_value(size: int, *, is_one_word: bool) -> Iterator[dict[str, Any]]:
    yield {"text": ("x" if is_one_word else "some words ") * (size if is_one_word else size // 11), "sentiment": "a"}
    rng = random.Random(22)
    for number in range(60):
        yield {"text": " ".join(made_up_words(rng, 12)), "sentiment": "ab"[number % 2]}


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_twice_named(path: Path, keys: int) -> None:
    if path.suffix == ".csv":
        names = ",".join(f"k{number}" for number in range(keys))
        path.write_text(f"{names},k1\n{names},k1\n", encoding="utf-8")
    else:
        pairs = ", ".join(f'"k{number}": 0' for number in range(keys))
        path.write_text(f'{{{pairs}, "k1": 1}}\n', encoding="utf-8")


def write_parquet(path: Path, kind: str) -> None:
    """Write files of some KB: a cell of 1 GB alone, behind 999 small ones, or 1 MB that is there 100,000 times."""
    import pyarrow
    from pyarrow import parquet

    if kind == "repeated":
        texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["x" * 1_000_000])
    else:
        texts = pyarrow.array([*["ok"] * (999 if kind == "hidden" else 0), "x" * 1_000_000_000])
    table = pyarrow.table({"text": texts, "sentiment": ["a"] * len(texts)})
    parquet.write_table(table, path, compression="zstd", use_dictionary=kind == "repeated", write_statistics=False)


def measure(script: str, *words: object) -> tuple[Cost, str]:
    """Run one of the project's scripts; return its cost and how it ended."""
    texts = [json.dumps(word) if isinstance(word, dict) else str(word) for word in words]
    start = os.times().elapsed
    process = subprocess.Popen([sys.executable, str(SCRIPTS / f"{script}.py"), *texts], stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode().strip().splitlines() or [""]
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cost = Cost(os.times().elapsed - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)
    return cost, "done" if not status else said[-1].replace(f"{words[3]}", "FILE")[:120]


def run_chain(
    folder: Path, raw: Path, base: Path, scripts: int, truncation: str
) -> Iterator[tuple[str, Cost, str, int]]:
    """Run the first rules of the chain on a file of rows; yield also the MB that each asks for."""
    sys.path.insert(0, str(SCRIPTS))
    from lib.hardware.resources import estimate_data_mb

    place = {
        name: folder / name for name in ("rows", "audit", "rejected", "kept", "split", "leakage", "scores", "said")
    }
    splits = [word for name in SPLITS for word in (f"--{name}", folder / name)]
    files = [*splits, "--template", folder / "template"]
    audited = ("--audit", place["audit"], "--kept", place["kept"])
    settings = {"task": "classification", "data": DATA, "corpus": CORPUS | {"truncation": truncation}}
    shares = {"seed": 0, "task": "classification", "split": {"validation": 0.1, "test": 0.15, "leakage": "error"}}
    source = {"source": {"files": [raw.name]}, "unreadable": "reject"}
    asked = {"task": "classification", "seed": 0, "evaluate": EVALUATE}
    rows = ("--rows", place["rows"], "--tokenizer", base, *audited, "--rejected", place["rejected"])
    chain: list[tuple[str, tuple[object, ...], list[Path]]] = [
        ("fetch_data", ("--settings", source, "--files", raw, "--output", place["rows"]), [raw]),
        ("audit_data", ("--settings", settings, *rows), [place["rows"]]),
        ("split_data", ("--settings", shares, *audited, "--output", place["split"]), [place["kept"]]),
        (
            "render_corpus",
            ("--settings", settings, *audited, "--split", place["split"], "--tokenizer", base, *files),
            [place["kept"], place["split"]],
        ),
        (
            "check_leakage",
            ("--settings", {"near_duplicates": 0.8, "leakage": "error"}, *files, "--output", place["leakage"]),
            [folder / name for name in SPLITS],
        ),
        (
            "score_baselines",
            ("--settings", asked, *files, "--output", place["scores"], "--predictions", place["said"]),
            [folder / name for name in SPLITS],
        ),
    ]
    for script, words, inputs in chain[:scripts]:
        asks = estimate_data_mb(sum(path.stat().st_size for path in inputs) / 1e6)
        cost, end = measure(script, *words)
        yield script, cost, end, asks
        if end != "done":
            return


def cases() -> dict[str, tuple[str, Callable[[Path], None], int, str]]:
    """Return each case by name: file name, its writer, how many rules of the chain run, `corpus.truncation`."""
    found: dict[str, tuple[str, Callable[[Path], None], int, str]] = {}
    for count in (12_500, 100_000):
        for words, of in ((0, "5 own words"), (5000, "5 of 5,000 words"), (300, "5 of 300 words")):
            name = f"{count:,} texts, {of}"
            found[name] = ("rows.jsonl", lambda path, n=count, v=words: write_rows(path, crowd(n, v)), 2, "right")
    found["50,000 labels"] = ("rows.jsonl", lambda path: write_rows(path, many_labels(50_000)), 6, "right")
    for one, shape in ((False, "words"), (True, "one word")):
        for truncation in ("right", "reject"):
            name = f"20 MB of {shape}, truncation {truncation}"
            write = lambda path, one=one: write_rows(path, long_value(20_000_000, is_one_word=one))  # noqa: E731
            found[name] = ("rows.jsonl", write, 6, truncation)
    for suffix in ("jsonl", "csv"):
        found[f"150,000 keys, one twice, {suffix}"] = (
            f"rows.{suffix}",
            lambda path: write_twice_named(path, 150_000),
            1,
            "right",
        )
    for kind in ("alone", "hidden", "repeated"):
        found[f"Parquet, 1 GB {kind}"] = ("rows.parquet", lambda path, kind=kind: write_parquet(path, kind), 1, "right")
    return found


def main(args: argparse.Namespace) -> None:
    lines, start = [], time.monotonic()
    for name, (file, write, scripts, truncation) in cases().items():
        if args.cases and not any(part in name for part in args.cases):
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_apart(write, Path(folder) / file)
            found = list(run_chain(Path(folder), Path(folder) / file, args.base, scripts, truncation))
        for script, cost, end, asks in found:
            lines.append([name, script, f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{cost.peak:,.0f}", f"{asks:,}", end])
        if len(found) == 6:
            wall, cpu, peak = (list(values) for values in zip(*(cost for _, cost, _, _ in found), strict=True))
            total = [f"{sum(wall):.1f}", f"{sum(cpu):.1f}", f"{max(peak):,.0f}", ""]
            lines.append([name, "all six", *total, ""])
        for line in lines[-len(found) :]:
            print(*line, sep=" | ", file=sys.stderr, flush=True)
    write_section(args.table, lines, args.cases, (time.monotonic() - start) / 60)


def write_apart(write: Callable[[Path], None], path: Path) -> None:
    """Write a file in a process of its own: a child's highest memory counts from that of its parent on."""
    process = multiprocessing.get_context("fork").Process(target=write, args=(path,))
    process.start()
    process.join()
    assert not process.exitcode


def write_section(path: Path, lines: list[list[str]], asked: list[str], minutes: float) -> None:
    """Put the table into the file, in place of the one that is there."""
    head = ["case", "rule", "wall s", "CPU s", "peak MB", "asked MB", "end"]
    parts = "".join(f" --cases {part!r}" for part in asked)
    section = f"""{TITLE}

    .venv/bin/python benchmarks/data_attacks.py{parts} --base results/base --table benchmarks/data.md

{machine("numpy", "tokenizers")} Took {minutes:.0f} minutes.

Crowds share 24 of 29 words, so that any two are just below the similarity at which they count as one. A label has
three rows; the words of rows and labels are made of syllables. `asked MB` is what the rule reserves (`estimate_data_mb`
in `scripts/lib/hardware/resources.py`), `end` the line in which a rule refuses a file. Needed: 100,000 texts of a crowd
in under 60 s, 50,000 labels through all six rules in under 120 s, and each peak below what was asked.

{markdown_table(head, lines)}
"""
    before = path.read_text(encoding="utf-8").partition(TITLE)[0] if path.exists() else ""
    path.write_text(before + section, encoding="utf-8")
    print(section)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", type=Path, default=Path("results/base"), help="folder of the base model")
    arguments.add_argument("--cases", nargs="*", default=[], help="parts of names of cases to run")
    arguments.add_argument("--table", type=Path, required=True, help="file whose last section it is")
    main(arguments.parse_args())
