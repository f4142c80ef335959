"""int4 in ONNX Runtime beside llama.cpp: first token, tokens per second, memory, size, and accuracy on the same rows.

    make run
    PYTHONPATH=tests .venv/bin/python benchmarks/inference.py

The merged model becomes a GGUF file, which llama.cpp itself quantizes. Then every model answers the same prompts, each
in a process of its own, in turn, several rounds: the ONNX ones by scripts/benchmark_onnx.py, the GGUF ones by
llama-cpp-python in an environment of its own, which is built on this machine (5 to 10 minutes).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "scripts"))

from lib.hardware.memory import measure_peak_rss_mb  # noqa: E402 (needs the path; nothing outside Python's library)

KINDS = {"Q4_0": 2, "Q4_1": 3, "Q4_K_M": 15}  # llama_ftype of llama.h
HEAD = [
    *("model", "MB", "accuracy, validation", "tokens/s", "of llama.cpp's"),
    *("first token, ms", "of llama.cpp's", "peak MB"),
]
Row = dict[str, Any]


def install_rival(folder: Path) -> Path:
    """Return the Python that has llama-cpp-python, built at the first call."""
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-binary",
            "llama-cpp-python",
            "-r",
            HERE / "inference.txt",
        ]
        subprocess.run(install, check=True)
        (folder / "installed").touch()
    return python


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantize a GGUF file by llama.cpp's own function."""
    import ctypes

    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = KINDS[kind]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        sys.exit(f"error: llama.cpp cannot make {kind}")


def measure_llama(file: Path, prompts: list[str], new_tokens: int, threads: int) -> Row:
    """Return medians over the prompts, as benchmark_onnx.py does for an ONNX model."""
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    first, speed = [], []
    for prompt in [prompts[0], *prompts]:  # the first run allocates and warms caches
        model.reset()
        began = time.perf_counter()
        tokens = model.generate(model.tokenize(prompt.encode(), add_bos=False, special=True), top_k=1, temp=0.0)
        next(tokens)
        at_first = time.perf_counter()
        for _ in islice(tokens, new_tokens - 1):
            pass
        first.append(1000 * (at_first - began))
        speed.append((new_tokens - 1) / (time.perf_counter() - at_first))
    times = {"first_token_ms": median(first[1:]), "tokens_per_second": median(speed[1:])}
    return times | {"peak_rss_mb": measure_peak_rss_mb()}


def answer_rows(file: Path, rows: list[Row], answers: list[str], threads: int) -> float:
    """Return the share of rows whose label has the highest probability, with its end token, among all labels."""
    import numpy as np
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False)
    right = 0
    for row in rows:
        prompt = model.tokenize(row["prompt"].encode(), add_bos=False, special=True)
        scores = []
        for answer in answers:
            ids = model.tokenize((row["prompt"] + answer).encode(), add_bos=False, special=True)
            model.reset()
            model.eval(ids)
            logits = np.array(model.scores[len(prompt) - 1 : len(ids) - 1], dtype=np.float64)
            steps = logits[range(len(ids) - len(prompt)), ids[len(prompt) :]] - np.logaddexp.reduce(logits, axis=1)
            scores.append(steps.sum())
        right += answers[int(np.argmax(scores))] == row["completion"]
    return right / len(rows)


def ask_rival(python: Path, *words: object) -> Row:
    command = [python, __file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        sys.exit(f"error: {words[0]} failed")
    return json.loads(done.stdout or "{}")


def measure_onnx(folder: Path, rows: Path, args: argparse.Namespace, scratch: Path) -> Row:
    settings = {"benchmark": {"prompts": args.prompts, "new_tokens": args.new_tokens}}
    output = scratch / "onnx.json"
    command = [
        sys.executable,
        ROOT / "scripts/benchmark_onnx.py",
        "--settings",
        json.dumps(settings),
        "--model",
        folder,
    ]
    command += ["--rows", rows, "--output", output, "--threads", str(args.threads)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return json.loads(output.read_text())


def read_accuracy(folder: Path) -> float:
    """Return what score_onnx found for this build on the validation rows."""
    run, variant = folder.parents[1].name, folder.name
    scores = folder.parents[3] / f"scores/{run}/onnx-{variant}.validation.json"
    return float(json.loads(scores.read_text())["quality"]["accuracy"])


def format_range(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main(args: argparse.Namespace) -> None:
    from bench import machine, markdown_table, write_table

    from support.gguf_files import write_gguf

    rival = install_rival(args.work / "llama-cpp-env")
    corpus = args.results / "corpus/validation.jsonl"
    models = [args.results / f"runs/{args.run}/onnx/{variant}" for variant in args.variants]
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        whole = write_gguf(args.results / f"runs/{args.run}/merged", scratch / "whole.gguf", kind="F16")
        files = {kind: scratch / f"{kind}.gguf" for kind in KINDS}
        for kind, file in files.items():
            ask_rival(rival, "quantize", whole, file, kind)
        asked = [corpus, args.prompts, args.new_tokens, args.threads]
        found: dict[str, list[Row]] = {}
        for _ in range(args.rounds):
            for folder in models:
                found.setdefault(folder.name, []).append(measure_onnx(folder, corpus, args, scratch))
            for kind, file in files.items():
                found.setdefault(f"llama.cpp {kind}", []).append(ask_rival(rival, "speed", file, *asked))
        sizes = {folder.name: sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for folder in models}
        sizes |= {f"llama.cpp {kind}": file.stat().st_size / 1e6 for kind, file in files.items()}
        right = {folder.name: read_accuracy(folder) for folder in models}
        for kind, file in files.items():
            right[f"llama.cpp {kind}"] = ask_rival(rival, "accuracy", file, corpus, args.threads)["accuracy"]
    fastest = max((name for name in found if "llama" in name), key=lambda name: pick(found[name], "tokens_per_second"))
    lines = [
        [
            name,
            f"{sizes[name]:.1f}",
            f"{right[name]:.3f}",
            format_range([one["tokens_per_second"] for one in rounds], 0),
            compare([one["tokens_per_second"] for one in rounds], [one["tokens_per_second"] for one in found[fastest]]),
            format_range([one["first_token_ms"] for one in rounds], 1),
            compare([one["first_token_ms"] for one in rounds], [one["first_token_ms"] for one in found[fastest]]),
            f"{pick(rounds, 'peak_rss_mb'):.0f}",
        ]
        for name, rounds in found.items()
    ]
    facts = machine("onnxruntime", "onnxruntime-genai", threads=args.threads)
    prompt = median(one["prompt_tokens"] for rounds in found.values() for one in rounds if "prompt_tokens" in one)
    intro = (
        "# Inference beside llama.cpp\n\n    make run\n    PYTHONPATH=tests .venv/bin/python benchmarks/inference.py"
        f"\n\n{facts} {(HERE / 'inference.txt').read_text().splitlines()[-1]}.\n\n"
        f"{args.rounds} rounds in turn, {args.prompts} prompts of the validation rows (median {prompt:.0f} tokens), "
        f"{args.new_tokens} new tokens, batch 1. Median of the rounds' medians (lowest to highest). Ratios are to "
        f"{fastest}, the fastest of llama.cpp here, round by round. Accuracy: the label with the highest probability "
        "of all, on the same rows."
    )
    write_table(args.table, f"{intro}\n\n{markdown_table(HEAD, lines)}\n")


def pick(rounds: list[Row], name: str) -> float:
    return median(one[name] for one in rounds)


def compare(ours: list[float], theirs: list[float]) -> str:
    return f"{median(one / other for one, other in zip(ours, theirs, strict=True)):.2f}"


def run_in_rival(what: str, file: Path, *words: str) -> None:
    """Do one thing in llama-cpp-python's environment, and print what it found as JSON."""
    if what == "quantize":
        quantize(file, Path(words[0]), words[1])
        return
    rows = [json.loads(line) for line in Path(words[0]).read_text(encoding="utf-8").splitlines()]
    if what == "speed":
        prompts, new_tokens, threads = map(int, words[1:])
        print(json.dumps(measure_llama(file, [row["prompt"] for row in rows[:prompts]], new_tokens, threads)))
    else:
        answers = sorted({row["completion"] for row in rows})
        print(json.dumps({"accuracy": answer_rows(file, rows, answers, int(words[1]))}))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("quantize", "speed", "accuracy"):
        run_in_rival(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
        sys.exit()
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, default=Path("results"), help="a finished run that kept its models")
    arguments.add_argument("--run", default="lora", help="its run whose merged model llama.cpp quantizes")
    arguments.add_argument("--variants", nargs="+", default=["int4", "int4-k-quant", "int4-gptq"], help="its builds")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--prompts", type=int, default=20)
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--work", type=Path, default=ROOT / "work", help="where the environment is kept")
    arguments.add_argument("--table", type=Path, default=HERE / "inference.md", help="file to write")
    main(arguments.parse_args())
