"""Selection and gate on variants whose differences are planted."""

import json

import pytest

from lib.core.files import write_json, write_jsonl
from lib.core.layout import Layout
from lib.evaluation.metrics import measure_quality
from lib.provenance.manifests import build_manifest_path
from support.candidates import LABELS, predictions, write_candidate

SELECTION = {
    "metric": "accuracy",
    "min_quality": None,
    "max_size_mb": None,
    "max_first_token_ms": None,
    "min_tokens_per_second": None,
    "max_peak_rss_mb": None,
}
EVALUATE = {"bootstrap_samples": 1000, "greedy_rows": 0}


@pytest.fixture
def select(tmp_path, run_script):
    """Run select_model on candidates: name to (numbers of wrong rows, size in MB, other facts about its speed).

    A name is a variant of run `lora`, or RUN.VARIANT; every run has the same variants. runs: their groups and seeds.
    """

    def run(candidates: dict, check: bool = True, runs: dict | None = None, unscored: dict | None = None, **selection):
        names = [(name.rpartition(".")[0] or "lora", name.rpartition(".")[2]) for name in candidates]
        for (run_name, variant), (wrong, size, speed) in zip(names, candidates.values(), strict=True):
            write_candidate(Layout(tmp_path), run_name, variant, predictions(wrong), {"size_mb": size, **speed})
        settings = {
            "task": "classification",
            "seed": 0,
            "evaluate": EVALUATE,
            "selection": SELECTION | selection,
            "runs": [
                {"name": name} | (runs or {}).get(name, {"group": name, "seed": None})
                for name in dict.fromkeys(name for name, _ in names)
            ],
            "scored": list(dict.fromkeys(variant for _, variant in names)),
            "unscored": unscored or {},
        }
        words = ("--settings", settings, "--results", tmp_path, "--output", tmp_path / "out")
        done = run_script("select_model", *words, check=check)
        return json.loads((tmp_path / "out").read_text()) if check else done

    return run


def reasons(selection: dict) -> dict[str, str]:
    return {one["variant"]: one["reason"] for one in selection["rejected"]}


def test_sizes_a_little_apart_count_as_one_and_the_better_metric_decides(select):
    """The rows cannot tell 3 wrong rows from 6; 2 MB of 92 are no reason to take the worse one, 30 MB are."""
    found = select({"a": (set(range(6)), 90.0, {}), "b": (set(range(3)), 92.0, {"tokens_per_second": 30.0})})
    assert found["variant"] == "b"
    assert "is not significantly worse, but no more than 5 % smaller than its 92.0 MB" in found["reason"]
    assert "b, as small (92.0 against 90.0 MB), has the better value" in found["rejected"][0]["reason"]
    found = select({"a": (set(range(6)), 90.0, {}), "b": (set(range(3)), 120.0, {})})
    assert found["variant"] == "a"
    assert "a is smaller (90.0 against 120.0 MB)" in found["rejected"][0]["reason"]


def test_the_smallest_within_noise_of_the_best_wins(select):
    found = select(
        {"big": (set(range(10)), 500, {}), "small": (set(range(11)), 100, {}), "bad": (set(range(40)), 50, {})}
    )
    assert (found["run"], found["variant"]) == ("lora", "small")
    assert found["reason"] == (
        "accuracy 0.890 on 100 validation rows; not significantly different from lora/big (0.900),"
        " and it is the smallest of these, 100.0 MB"
    )
    assert (
        "does not differ significantly from lora/small's 0.890 (95 % interval of the difference -0.0"
        in reasons(found)["big"]
    )
    assert "lora/small is smaller (100.0 against 500.0 MB)" in reasons(found)["big"]
    assert "accuracy 0.600 is below lora/big's 0.900 (95 % interval of the difference +0." in reasons(found)["bad"]


def test_the_selection_says_what_the_rows_cannot_tell_and_how_many_could(select):
    found = select(
        {"big": (set(range(10)), 500, {}), "small": (set(range(11)), 100, {}), "bad": (set(range(40)), 50, {})}
    )
    big, bad = found["compared"]
    assert (big["variant"], big["is_significant"], bad["variant"], bad["is_significant"]) == ("big", False, "bad", True)
    assert big["difference"] == pytest.approx(-0.01)
    assert big["difference_ci95"][0] < -0.01 < big["difference_ci95"][1] == 0
    assert big["rows_needed"] > 400  # one row in a hundred
    assert bad["rows_needed"] < 100
    equal = select({"one": ({1}, 100, {}), "two": ({2}, 200, {})})["compared"][0]
    assert (equal["is_significant"], equal["rows_needed"]) == (False, None)
    assert select({"one": ({1}, 100, {})})["compared"] == []


def test_a_small_variant_is_not_taken_when_another_is_shown_to_be_better_than_it(select):
    """The best cannot be told from either, but `middle` can be told from `small`: small is out."""
    best, middle = set(range(50, 60)), set(range(12))
    found = select(
        {"best": (best, 500, {}), "middle": (middle, 300, {}), "small": (middle | {12, 13, 14, 15, 16, 17}, 100, {})}
    )
    assert found["variant"] == "middle"
    assert "below lora/middle's 0.880" in reasons(found)["small"]


def test_a_difference_that_rows_show_beats_size(select):
    found = select({"big": (set(range(5)), 500, {}), "small": (set(range(15)), 100, {})})
    assert found["variant"] == "big"
    assert reasons(found).keys() == {"small"}


def test_the_difference_is_paired(select):
    """12 errors against 22: apart when they are the same rows, within noise when they are others."""
    same = {"big": (set(range(12)), 500, {}), "small": (set(range(22)), 100, {})}
    others = {"big": (set(range(12)), 500, {}), "small": (set(range(50, 72)), 100, {})}
    assert select(same)["variant"] == "big"
    assert select(others)["variant"] == "small"


def test_of_equal_size_the_fastest_wins(select):
    slow, fast = ({0}, 100, {"tokens_per_second": 20.0}), ({1}, 100, {"tokens_per_second": 30.0})
    found = select({"slow": slow, "fast": fast})
    assert found["variant"] == "fast"
    assert "as small and not slower (30.0 against 20.0 tokens per second)" in reasons(found)["slow"]


def test_every_broken_constraint_is_named_with_its_numbers(select):
    limits = {
        "max_size_mb": 200,
        "max_first_token_ms": 40,
        "min_tokens_per_second": 41,
        "max_peak_rss_mb": 299,
        "min_quality": 0.95,
    }
    found = select({"one": ({*range(10)}, 250, {})}, **limits)
    assert found["run"] is found["variant"] is None
    assert found["reason"] == "no variant keeps every constraint"
    quality_ = "is below selection.min_quality 0.95, so these rows leave open whether it is"
    for text in (
        f"accuracy 0.900 (95 % interval 0.840 to 0.960) {quality_}",
        "250.0 MB is above selection.max_size_mb 200",
    ):
        assert text in reasons(found)["one"]
    for setting in limits:
        assert f"selection.{setting}" in reasons(found)["one"]


def test_a_quality_that_the_rows_show_to_be_too_low_is_called_so(select):
    found = select({"one": ({*range(40)}, 100, {})}, min_quality=0.9)
    assert reasons(found)["one"].endswith("is below selection.min_quality 0.9")
    assert found["candidates"][0]["feasible"] is False


def test_every_variant_has_its_numbers_and_a_reason(select):
    found = select(
        {
            "a.int4": (set(range(10)), 100, {}),
            "a.rtn": (set(range(12)), 100, {"peak_rss_mb": 310.0}),
            "a.fp32": (set(range(9)), 500, {}),
            "a.big": (set(range(5)), 900, {}),
        },
        unscored={"cuda": "cuda"},
        max_size_mb=500,
    )
    table = {f"{one['run']}/{one['variant']}": one for one in found["candidates"]}
    assert list(table) == ["a/int4", "a/rtn", "a/fp32", "a/big", "a/cuda"]
    keys = "run variant value value_ci95 size_mb first_token_ms tokens_per_second peak_rss_mb feasible pareto dominated_by chosen reason"
    assert all(list(one) == keys.split() for one in table.values())
    assert table["a/int4"]["chosen"] is table["a/int4"]["pareto"] is table["a/int4"]["feasible"] is True
    assert table["a/int4"]["reason"] == found["reason"]
    assert table["a/int4"]["value_ci95"][0] < table["a/int4"]["value"] == 0.9 < table["a/int4"]["value_ci95"][1]
    assert (table["a/rtn"]["pareto"], table["a/rtn"]["dominated_by"]) == (False, "a/int4")  # worse, not smaller
    assert (table["a/fp32"]["pareto"], table["a/fp32"]["dominated_by"]) == (True, None)  # better, larger
    # What breaks a constraint is on no front and puts nothing off it.
    assert (table["a/big"]["feasible"], table["a/big"]["pareto"], table["a/big"]["dominated_by"]) == (
        False,
        False,
        None,
    )
    cuda = table["a/cuda"]
    assert (cuda["value"], cuda["value_ci95"], cuda["size_mb"], cuda["feasible"]) == (None, None, None, False)
    assert cuda["reason"] == "its provider cuda is not run here"
    rejected = {f"{one['run']}/{one['variant']}": one["reason"] for one in found["rejected"]}
    assert rejected == {name: one["reason"] for name, one in table.items() if not one["chosen"]}


def test_the_ranking_goes_by_the_mean_over_seeds(select):
    runs = {f"{group}-{seed}": {"group": group, "seed": seed} for group in ("low", "high") for seed in (1, 2, 3)}
    wrong = {"low-1": 45, "low-2": 52, "low-3": 50, "high-1": 10, "high-2": 2, "high-3": 6}
    found = select({f"{name}.int4": (set(range(count)), 100, {}) for name, count in wrong.items()}, runs=runs)
    high, low = found["ranking"]
    assert (high["group"], high["variant"], high["seeds"], high["values"]) == (
        "high",
        "int4",
        [1, 2, 3],
        [0.9, 0.98, 0.94],
    )
    assert (high["mean"], high["sd"]) == (pytest.approx(0.94), pytest.approx(0.04))
    assert (high["difference"], high["difference_ci95"], high["is_significant"]) == (0, None, None)
    assert (low["group"], low["mean"]) == ("low", pytest.approx(0.51))
    assert low["difference"] == pytest.approx(-0.43)
    assert low["difference_ci95"][0] < -0.43 < low["difference_ci95"][1] < 0
    assert low["is_significant"] is True


def test_without_seeds_each_run_is_a_group_of_its_own(select):
    found = select({"a.int4": ({1}, 100, {}), "b.int4": ({2, 3}, 100, {})})
    assert [(one["group"], one["seeds"], one["sd"]) for one in found["ranking"]] == [
        ("a", [None], None),
        ("b", [None], None),
    ]
    assert found["ranking"][1]["difference_ci95"] == pytest.approx([-0.04, 0.02], abs=0.011)


def test_candidates_of_other_rows_are_refused(select, tmp_path, run_script):
    select({"one": ({1}, 100, {}), "two": ({1}, 100, {})})
    write_jsonl(Layout(tmp_path).predictions("lora", "onnx-two"), predictions({1})[1:])
    done = run_script("select_model", *again(tmp_path, ["one", "two"]), check=False)
    assert done.returncode == 1
    assert "error: 1 rows are not in both sets of predictions compared with lora/two" in done.stderr


def again(folder, variants: list[str]) -> list:
    """The words of a selection among candidates that were written before."""
    settings = {"task": "classification", "seed": 0, "evaluate": EVALUATE, "selection": SELECTION}
    settings |= {"runs": [{"name": "lora", "group": "lora", "seed": 0}], "scored": variants, "unscored": {}}
    return ["--settings", settings, "--results", folder, "--output", folder / "out2"]


def test_a_value_at_its_limit_is_allowed_and_the_best_may_be_infeasible(select):
    found = select({"best": (set(), 250, {}), "next": (set(range(30)), 200, {})}, max_size_mb=200)
    assert found["variant"] == "next"
    assert found["reason"].endswith("it is the only variant that keeps every constraint")


def test_the_default_metric_is_macro_f1(select):
    assert select({"one": ({1}, 100, {})}, metric=None)["metric"] == "macro_f1"


def test_a_score_of_other_bytes_or_without_the_metric_is_refused(select, tmp_path, run_script):
    select({"one": ({1}, 100, {})})
    write_json(build_manifest_path(Layout(tmp_path).folder("lora", "onnx-one")), {"name": "built again"})
    done = run_script("select_model", *again(tmp_path, ["one"]), check=False)
    assert done.returncode == 1
    assert "this score was computed from a different model than" in done.stderr
    assert not (tmp_path / "out2").exists()
    done = select({"one": ({1}, 100, {})}, metric="chrf", check=False)
    assert done.returncode == 1
    assert "no metric 'chrf'" in done.stderr


@pytest.fixture
def gate(tmp_path, run_script):
    def run(check: bool = True, model=frozenset(range(10)), rival=frozenset(range(20)), **settings):
        rows = predictions(set(model))
        measured = measure_quality("classification", rows, LABELS, seed=0, samples=50)
        write_json(tmp_path / "score", measured)
        write_jsonl(tmp_path / "predictions", rows)
        others = []
        for name, wrong in {"majority": set(range(50)), "tfidf_logreg": set(rival)}.items():
            # What a baseline does on validation rows must not decide.
            others += [{"baseline": name, "split": "test", **row} for row in predictions(wrong)]
            others += [{"baseline": name, "split": "validation", **row} for row in predictions(set())]
        write_jsonl(tmp_path / "others", others)
        write_jsonl(tmp_path / "base", predictions(set(range(70))))
        words = ["--score", tmp_path / "score", "--predictions", tmp_path / "predictions"]
        words += ["--baseline-predictions", tmp_path / "others", "--base-predictions", tmp_path / "base"]
        gate = {"minimum": {}, "beat_baseline": False} | settings
        settings = {"task": "classification", "seed": 0, "evaluate": {"bootstrap_samples": 200}, "gate": gate}
        done = run_script("check_gate", "--settings", settings, *words, "--output", tmp_path / "gate.json", check=check)
        return json.loads((tmp_path / "gate.json").read_text()) if check else done

    return run


def test_gate_compares_each_minimum(gate):
    found = gate(minimum={"accuracy": 0.9, "macro_f1": 0.95})
    assert found["passed"] is False
    assert [check["passed"] for check in found["checks"]] == [True, False]  # a value at its limit passes
    assert found["checks"][0] == {"name": "accuracy", "limit": 0.9, "value": 0.9, "passed": True}
    assert gate() == {"passed": True, "checks": []}


def test_a_metric_without_a_value_fails_its_check(gate):
    assert gate(minimum={"greedy_accuracy": 0.0})["passed"] is False


def test_gate_against_the_baselines_records_the_paired_test(gate):
    checks = {check["rival"]: check for check in gate(beat_baseline="shown")["checks"]}
    assert list(checks) == ["majority", "tfidf_logreg", "base"]
    check = checks["tfidf_logreg"]
    assert check["name"] == "accuracy_above_tfidf_logreg"
    assert (check["limit"], check["value"], check["passed"]) == (pytest.approx(0.8), 0.9, True)
    assert (check["wins"], check["losses"]) == (10, 0)
    assert check["mcnemar_p"] == pytest.approx(2 / 2**10)


@pytest.mark.parametrize(
    ("rival", "shown", "point"),
    [(20, True, True), (13, False, True), (10, False, False)],  # 3 rows more are luck; as good is not better
)
def test_a_gate_asks_for_a_difference_that_is_shown_or_for_a_higher_value(gate, rival, shown, point):
    assert gate(beat_baseline="shown", rival=range(rival))["passed"] is shown
    assert gate(beat_baseline="point", rival=range(rival))["passed"] is point


def test_a_higher_value_is_asked_of_the_best_baseline_alone(gate):
    [check] = gate(beat_baseline="point", rival=range(60))["checks"]
    assert check["rival"] == "majority"  # better than TF-IDF here


def test_gate_refuses_an_unknown_metric(gate):
    done = gate(minimum={"acuracy": 0.9}, check=False)
    assert done.returncode == 1
    assert "no metric 'acuracy'" in done.stderr


def test_enforcing_a_failed_gate_names_the_checks_and_the_evidence(gate, tmp_path, run_script):
    words = ["--gate", "gate.json", "--report", "r.html", "--summary", "s.json", "--output", "gate.passed"]
    write_json(tmp_path / "s.json", {"verdict": {"text": "Do not ship it."}})
    gate(minimum={"accuracy": 0.95}, beat_baseline="shown", rival=range(13))
    done = run_script("enforce_gate", *words, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "gate: accuracy is 0.9000, the limit is 0.9500",
        "gate: accuracy 0.9000 is not shown to be better than 0.8700 of tfidf_logreg, p = 0.25",
        "Do not ship it.",
        "error: gate.json: the model does not pass the gate: accuracy, accuracy_above_tfidf_logreg; see r.html and s.json",
    ]
    assert not (tmp_path / "gate.passed").exists()
    gate(minimum={"accuracy": 0.85})
    run_script("enforce_gate", *words, cwd=tmp_path)
    assert (tmp_path / "gate.passed").is_file()
