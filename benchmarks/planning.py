"""Planning: seconds and memory of `snakemake -n` for sweeps of several sizes, before the first run and after it.

    python benchmarks/planning.py --table benchmarks/planning.md

A finished sweep is made up: every output that `snakemake --summary` names is written, small and of the right kind, and
`snakemake --touch` records it as made by its job. `copied` is the same without Snakemake's own record, as after
`dvc pull` in a fresh clone: lineage.json tells what was made how. Planned is `evidence`, which is all but the
verdict. Seconds are those of the CPU (user and system), since wall seconds
are only true on a quiet machine; they contain the start of Snakemake.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from bench import SCRIPTS, machine, markdown_table, write_table

GRID = {"r": [4, 8, 16, 32, 64], "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3]}
VARIANTS = {"int4": {"block_size": [16, 32, 64, 128, 256]}, "k-quant": {"block_size": [32, 64, 128]}}
SIZES = {
    "1 x 2": {},
    "20 x 8": {"finetune": GRID, "variants": VARIANTS},
    "200 x 8": {"finetune": GRID, "seed": list(range(10)), "variants": VARIANTS},
}
MANIFEST = '{"files": {}, "inputs": {}, "settings": {}, "size_bytes": 0}\n'


def configuration(project: Path, sweep: dict) -> dict:
    """The demo's, with a sweep."""
    values = yaml.safe_load((project / "config.yaml").read_text(encoding="utf-8"))
    return values | {
        "sweep": sweep,
        "keep": "selected",
        "variants": {"int4": {}, "k-quant": {"algo_config": "k_quant"}},
    }


def snakemake(project: Path, folder: Path, *words: str) -> tuple[str, float, float]:
    """Run it in `folder`. Output, CPU seconds, peak MB."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "-s", str(project / "Snakefile")]
    with open(folder / "output.txt", "w+b") as output:
        process = subprocess.Popen(
            [*command, "-d", str(folder), "--configfile", str(folder / "config.yaml"), *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=project,
        )
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read().decode()
    if status:
        sys.exit(text[-3000:])
    return text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def plan(project: Path, folder: Path) -> tuple[str, float, float]:
    return snakemake(project, folder, "-n", "--quiet", "rules", "--", "evidence")


def finish(project: Path, folder: Path) -> None:
    """Put something where each output lies, and have Snakemake take it for made."""
    lines = snakemake(project, folder, "--summary")[0].splitlines()
    names = [line.split("\t")[0] for line in lines if line.count("\t") > 4 and not line.startswith("output_file")]
    for path in (folder / name for name in names if name != "results/gate.passed"):
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(MANIFEST, encoding="utf-8")
        else:
            path.mkdir(parents=True, exist_ok=True)
    snakemake(project, folder, "--touch", "--", "evidence")


def measure(project: Path, size: str, folder: Path) -> list[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(project, SIZES[size]), sort_keys=False))
    text, *fresh = plan(project, folder)
    jobs = re.findall(r"^total +(\d+)", text, re.MULTILINE)[0]
    finish(project, folder)
    text, *finished = plan(project, folder)
    assert "Nothing to be done" in text, text[-3000:]
    shutil.rmtree(folder / ".snakemake")
    text, *copied = plan(project, folder)
    assert "Nothing to be done" in text, text[-3000:]
    cells = [f"{seconds:.1f} s, {megabytes:.0f} MB" for seconds, megabytes in (fresh, finished, copied)]
    return [size, jobs, *cells]


def main(args: argparse.Namespace) -> None:
    lines = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(args.project.resolve(), size, Path(folder)))
            print(*lines[-1], file=sys.stderr, flush=True)
    head = ["runs x variants", "jobs", "fresh", "finished", "copied"]
    title = f"# Planning\n\n`python benchmarks/planning.py`\n\n{machine('snakemake')}\n"
    write_table(args.table, f"{title}\n{markdown_table(head, lines)}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="RUNSxVARIANTS")
    arguments.add_argument(
        "--project", type=Path, default=SCRIPTS.parent, help="checkout to measure, such as an older one"
    )
    arguments.add_argument("--table", type=Path, default=Path("benchmarks/planning.md"), help="file to write")
    main(arguments.parse_args())
