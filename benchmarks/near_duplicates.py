"""The search for near-duplicates beside datasketch and rensa: pairs found, missed and wrong, time and memory.

    .venv/bin/python benchmarks/near_duplicates.py

The rows are those of benchmarks/data.py: 200,000 texts, of which 11 in 100 repeat another one wholly or nearly and 2 in
100 are letters of one of 20 forms. Every way gets the same cleaned texts and compares character 5-grams at a Jaccard
similarity of 0.8. What is right is counted without any hashing of sets: each text of a sample against all others.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "scripts"))

from lib.hardware.memory import measure_peak_rss_mb  # noqa: E402 (needs the path; nothing outside Python's library)

THRESHOLD, WIDTH = 0.8, 5
PERMUTATIONS, BANDS = 128, 16  # what both rivals' pages use; of rensa's bands the double, which finds more
WAYS = ("slmflow", "datasketch", "rensa")
Pairs = list[tuple[int, int]]


class Found(NamedTuple):
    """Hold the pairs that one way says are similar, its seconds, and its peak memory in MB."""

    pairs: Pairs
    seconds: float
    peak: float


def cut_shingles(text: str) -> set[str]:
    return {text[start : start + WIDTH] for start in range(max(1, len(text) - WIDTH + 1))}


def search_slmflow(texts: list[str]) -> Pairs:
    from lib.data.near_duplicates import find_similar_pairs
    from lib.data.signatures import Signer

    signer = Signer(THRESHOLD, seed=1)
    parts = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
    with tempfile.TemporaryDirectory() as folder:
        return find_similar_pairs(map(signer.sign, parts), THRESHOLD, folder=Path(folder)).pairs


def search_datasketch(texts: list[str]) -> Pairs:
    """Query, then insert, as its page shows; candidates count where their estimate reaches the threshold."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    pairs, sketches = [], []
    shingled = ([piece.encode() for piece in cut_shingles(text)] for text in texts)
    for place, sketch in enumerate(MinHash.generator(shingled, num_perm=PERMUTATIONS)):
        sketches.append(sketch)
        pairs += [(other, place) for other in index.query(sketch) if sketch.jaccard(sketches[other]) >= THRESHOLD]
        index.insert(place, sketch)
    return pairs


def search_rensa(texts: list[str]) -> Pairs:
    """Compare full-set sketches, whose result does not depend on the order of words."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(THRESHOLD, PERMUTATIONS, BANDS)
    pairs: Pairs = []
    sketches: list[RMinHash] = []
    for start in range(0, len(texts), 10_000):
        some = RMinHash.from_token_sets(
            [list(cut_shingles(text)) for text in texts[start : start + 10_000]], PERMUTATIONS, 1
        )
        sketches += some
        index.insert_many(some, start)
    for start in range(0, len(texts), 10_000):
        for place, others in enumerate(index.query_all(sketches[start : start + 10_000]), start):
            near = (other for other in others if other < place)
            pairs += [(other, place) for other in near if sketches[place].jaccard(sketches[other]) >= THRESHOLD]
    return pairs


def search(way: str, file: Path, output: Path) -> None:
    texts = json.loads(file.read_text(encoding="utf-8"))
    began = time.monotonic()
    pairs = {"slmflow": search_slmflow, "datasketch": search_datasketch, "rensa": search_rensa}[way](texts)
    seconds = time.monotonic() - began
    output.write_text(json.dumps({"seconds": seconds, "peak": measure_peak_rss_mb(), "pairs": pairs}))


def run(python: Path, way: str, file: Path) -> Found:
    output = file.with_name(f"{way}.json")
    command = [str(python), __file__, "--way", way, "--texts", str(file), "--output", str(output)]
    subprocess.run(command, check=True)
    found = json.loads(output.read_text())
    return Found([(one, other) for one, other in found["pairs"]], found["seconds"], found["peak"])


def hash_shingles(text: str) -> NDArray[np.uint64]:
    """Return the distinct 5-grams of a text, each as a number that depends on all its characters."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < WIDTH:
        codes = np.pad(codes, (0, WIDTH - len(codes)))
    windows = np.lib.stride_tricks.sliding_window_view(codes, WIDTH)
    factors = np.random.default_rng(0).integers(1, 2**63, WIDTH, dtype=np.uint64) | np.uint64(1)
    return np.unique((windows * factors).sum(axis=1, dtype=np.uint64))


def list_true_pairs(texts: list[str], sample: list[int]) -> Pairs:
    """Return all pairs of a text of the sample with any other text that reach the threshold."""
    from scipy.sparse import csr_matrix

    sets = [hash_shingles(text) for text in texts]
    sizes = np.array([len(one) for one in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    whole = csr_matrix((np.ones(len(columns), dtype=np.int32), columns, starts))
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(sample), 100):
        chosen = sample[start : start + 100]
        shared = (whole[chosen] @ whole.T).tocoo()
        rows = np.array(chosen)[shared.row]
        union = sizes[rows] + sizes[shared.col] - shared.data
        near = (shared.data >= THRESHOLD * union) & (rows != shared.col)
        pairs |= {(min(pair), max(pair)) for pair in zip(rows[near].tolist(), shared.col[near].tolist(), strict=True)}
    return sorted(pairs)


def group(count: int, pairs: Pairs) -> NDArray[np.int32]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    links = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def describe(way: str, found: Found, texts: list[str], true: Pairs, sample: list[int]) -> list[str]:
    """Return a line: of the true pairs those that are in one group, and pairs that were joined and are not similar."""
    groups = group(len(texts), found.pairs)
    together = sum(bool(groups[one] == groups[other]) for one, other in true)
    chosen, known = set(sample), set(true)
    told = {(min(pair), max(pair)) for pair in found.pairs if chosen & set(pair)}
    # A text that is there twice is one to slmflow: its pairs are told of the first.
    wrong = sum(pair not in known for pair in told)
    missed = len(true) - together
    return [way, f"{len(true):,}", f"{missed:,} ({100 * missed / len(true):.2f} %)", f"{wrong:,} of {len(told):,}",
            f"{found.seconds:.0f}", f"{found.peak:,.0f}"]  # fmt: skip


def iterate_texts(count: int, words: list[str]) -> Iterator[str]:
    from data import made_up_rows
    from lib.data.signatures import make_comparable

    return (make_comparable(row["text"]) for row in made_up_rows(count, words))


def main(args: argparse.Namespace) -> None:
    from bench import machine, markdown_table, write_table

    rivals = args.work / "near-duplicates-env"
    if not (rivals / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", rivals], check=True)
        subprocess.run([rivals / "bin/pip", "install", "-q", "-r", HERE / "near_duplicates.txt"], check=True)
    words = [word for row in json.loads(args.tweets.read_text(encoding="utf-8")) for word in row["text"].split()]
    texts = list(iterate_texts(args.rows, words))
    sample = sorted(np.random.default_rng(0).choice(len(texts), min(args.sample, len(texts)), replace=False).tolist())
    true = list_true_pairs(texts, sample)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts))
        lines = []
        for way in WAYS:
            python = Path(sys.executable) if way == "slmflow" else rivals / "bin/python"
            lines.append(describe(way, run(python, way, file), texts, true, sample))
    head = ["way", "similar pairs of the sample", "missed", "joined and not similar", "s", "peak MB"]
    intro = (
        f"# Near-duplicates\n\n    .venv/bin/python benchmarks/near_duplicates.py\n\n{machine('numpy')} datasketch "
        f"2.0.0, rensa 0.5.0, {PERMUTATIONS} permutations each.\n\n{len(texts):,} texts, a sample of {len(sample):,} "
        f"compared with all others. Jaccard similarity of character {WIDTH}-grams, {THRESHOLD} or more. Missed: pairs "
        "that are not in one group. Memory with all texts, which every way holds here."
    )
    write_table(args.table, f"{intro}\n\n{markdown_table(head, lines)}\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=200_000)
    arguments.add_argument("--sample", type=int, default=5_000, help="texts that are compared with all others")
    arguments.add_argument("--tweets", type=Path, default=Path("data/raw/tweets.json"), help="the demo's rows")
    arguments.add_argument("--work", type=Path, default=HERE.parent / "work", help="where the environment is kept")
    arguments.add_argument("--table", type=Path, default=HERE / "near_duplicates.md", help="file to write")
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    search(args.way, args.texts, args.output) if args.way else main(args)
