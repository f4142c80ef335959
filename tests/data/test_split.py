"""The split: clusters stay whole, labels are stratified, and only seed and rows decide."""

import random
from collections import Counter, defaultdict

import pytest

from lib.core.cli import UserError
from lib.core.files import write_json
from lib.data.rows import compute_row_id
from support.data_stages import SHARES, split


def kept(*groups: tuple[str, int, int]) -> list[dict]:
    """Rows of (label, number of clusters, rows per cluster)."""
    rows, cluster = [], 0
    for label, clusters, size in groups:
        for _ in range(clusters):
            for place in range(size):
                values = {"phrase": f"{cluster} {place}"}
                id_ = compute_row_id({**values, "tone": label})
                rows.append({"id": id_, "values": values, "target": label, "cluster": cluster})
            cluster += 1
    return rows


def test_fractions_are_met_in_every_class(tmp_path):
    rows = kept(("joy", 200, 1), ("fear", 100, 1), ("sadness", 20, 1))
    result = split(tmp_path, rows)
    assert result["by_label"] == {
        "joy": {"train": 150, "validation": 20, "test": 30},
        "fear": {"train": 75, "validation": 10, "test": 15},
        "sadness": {"train": 15, "validation": 2, "test": 3},
    }
    assert result["counts"] == {"train": 240, "validation": 32, "test": 48}
    assert result["counts"] == dict(Counter(result["rows"].values()))
    assert set(result["rows"]) == {row["id"] for row in rows}


@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_is_divided_and_fractions_stay_close(tmp_path, seed):
    rows = kept(
        ("joy", 150, 1), ("joy", 20, 4), ("joy", 2, 25), ("fear", 60, 2), ("fear", 11, 3), ("sad", 12, 1), ("sad", 5, 9)
    )
    result = split(tmp_path, rows, seed=seed)
    found = defaultdict(set)
    for row in rows:
        found[row["cluster"]].add(result["rows"][row["id"]])
    assert all(len(splits) == 1 for splits in found.values())
    for label, total in Counter(row["target"] for row in rows).items():
        for name, share in SHARES.items():
            assert abs(result["by_label"][label][name] - share * total) <= 2


def test_large_clusters_are_not_always_for_training(tmp_path):
    """Every split should hold duplicates as the data does, or test rows would be of another kind."""
    rows = kept(("joy", 200, 1), ("joy", 100, 2), ("fear", 200, 1))
    result = split(tmp_path, rows)
    in_pairs = Counter(result["rows"][row["id"]] for row in rows if 200 <= row["cluster"] < 300)
    assert in_pairs["test"] == pytest.approx(30, abs=4)
    assert in_pairs["validation"] == pytest.approx(20, abs=4)


def test_order_of_rows_and_numbers_of_clusters_do_not_matter(tmp_path):
    rows = kept(("joy", 50, 1), ("joy", 10, 3), ("fear", 40, 2))
    first = split(tmp_path, rows)
    shuffled = [{**row, "cluster": 1000 - row["cluster"]} for row in rows]
    random.Random(3).shuffle(shuffled)
    assert split(tmp_path, shuffled) == first
    other = split(tmp_path, rows, seed=2)
    assert other["counts"] == first["counts"]
    assert other["rows"] != first["rows"]


def test_cluster_goes_with_the_label_of_most_of_its_rows(tmp_path):
    rows = kept(("joy", 20, 3), ("fear", 20, 1))
    rows[0]["target"] = "fear"
    result = split(tmp_path, rows)
    assert len({result["rows"][row["id"]] for row in rows[:3]}) == 1
    assert sum(result["by_label"]["fear"].values()) == 21


def test_a_class_of_three_has_a_row_in_each_split(tmp_path):
    result = split(tmp_path, kept(("joy", 100, 1), ("fear", 3, 1)))
    assert result["by_label"]["fear"] == {"train": 1, "validation": 1, "test": 1}


def test_generation_is_one_stratum(tmp_path):
    rows = kept(*((f"answer {number}", 1, 1) for number in range(100)))
    result = split(tmp_path, rows, task="generation")
    assert result["by_label"] is None
    assert result["counts"] == {"train": 75, "validation": 10, "test": 15}


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (kept(("joy", 100, 1), ("fear", 2, 1)), "no rows of class 'fear' for train"),
        (kept(("joy", 100, 1), ("fear", 1, 30)), "no rows of class 'fear' for"),
        (kept(("joy", 2, 1)), "no rows for train: 2 rows in 2 groups"),
    ],
)
def test_empty_split_or_class_is_refused_with_numbers(tmp_path, rows, what):
    with pytest.raises(UserError) as error:
        split(tmp_path, rows)
    assert f"kept.jsonl: {what}" in str(error.value)
    assert "; bring more rows" in str(error.value)
    assert not (tmp_path / "split.json").exists()


def test_verdict_of_the_audit_stops_here(tmp_path):
    reasons = ["only one class: joy", "class 'fear' has 0 usable rows", "three", "four", "five"]
    verdict = {"ok": False, "reasons": reasons}
    with pytest.raises(UserError) as error:
        split(tmp_path, kept(("joy", 100, 1)), verdict=verdict)
    assert f"{tmp_path}/audit.json: " in str(error.value)
    assert "only one class: joy; class 'fear' has 0 usable rows; three; 2 more reasons; mend" in str(error.value)
    assert not (tmp_path / "split.json").exists()


def test_script_exit_code(tmp_path, run_script):
    write_json(tmp_path / "audit.json", {"labels": None, "verdict": {"ok": False, "reasons": ["why"]}})
    settings = {"seed": 1, "task": "generation", "split": SHARES}
    words = ["--settings", settings, "--audit", tmp_path / "audit.json", "--kept", "k", "--output", tmp_path / "s"]
    done = run_script("split_data", *words, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/audit.json: the audit stops here: why; ")


def give(rows: list[dict], **splits: range) -> list[dict]:
    """The rows with the split that each was given, by the number of its cluster."""
    given = {number: split for split, numbers in splits.items() for number in numbers}
    return [row | ({"split": given[row["cluster"]]} if row["cluster"] in given else {}) for row in rows]


def test_given_splits_are_kept_and_the_others_made_of_the_rest(tmp_path):
    rows = give(kept(("joy", 100, 2), ("fear", 100, 1)), test=range(20), train=range(20, 60))
    result = split(tmp_path, rows)
    assert result["given"] == ["test", "train"]
    assert result["counts"]["test"] == 40
    assert {result["rows"][row["id"]] for row in rows if row.get("split") == "test"} == {"test"}
    assert "test" not in {result["rows"][row["id"]] for row in rows if row.get("split") != "test"}
    assert result["by_label"]["fear"] == {"train": 90, "validation": 10, "test": 0}, "a given split may lack a class"
    assert result["by_label"]["joy"] == {"train": 144, "validation": 16, "test": 40}


def test_what_is_near_a_given_row_is_for_training_or_dropped(tmp_path):
    rows = kept(("joy", 60, 2))
    rows = [
        row | ({"split": "test"} if row["cluster"] < 10 and row["values"]["phrase"].endswith("0") else {})
        for row in rows
    ]
    near = {row["id"] for row in rows if row["cluster"] < 10 and "split" not in row}
    result = split(tmp_path, rows)
    assert {result["rows"][id_] for id_ in near} == {"train"}
    result = split(tmp_path, rows, shares={**SHARES, "leakage": "drop"})
    assert set(result["dropped"]) == near
    assert not near & result["rows"].keys()
    assert result["counts"]["test"] == 10


def test_with_all_splits_given_nothing_is_made(tmp_path):
    rows = give(kept(("joy", 30, 1)), test=range(5), validation=range(5, 12), train=range(12, 20))
    assert split(tmp_path, rows)["counts"] == {"train": 18, "validation": 7, "test": 5}
