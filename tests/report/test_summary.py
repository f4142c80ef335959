"""The summary of a made-up run: the keys that the design promises, and comparisons of the right stages."""

import json
from collections import Counter

import pytest

from lib.core.files import write_json
from lib.report import findings
from lib.workflow.headline import format_headline

QUALITY = {
    "classification": {"n", "accuracy", "accuracy_ci95", "macro_f1", "invalid_rate", "flips", "kl", "against"},
    "generation": {"n", "exact_match", "token_f1", "chrf", "perplexity", "flips", "kl", "against"},
}
AGAINST = {"name", "wins", "losses", "mcnemar_p", "rows_needed", "difference", "difference_ci95"}
STAGE = {"validation", "size_mb", "load_s", "first_token_ms", "tokens_per_second", "peak_rss_mb", "verified"}
TRAINING = {"real_tokens", "supervised_tokens", "tokens_per_second", "matmul_peak_share", "seconds", "peak_rss_mb"}


def test_summary_has_every_promised_key(made):
    summary = made.read("summary.json")
    more = ["probabilities"] if made.task == "classification" else []
    assert list(summary) == [
        *("verdict", "data", "tokenizer", "baselines", "base", "runs", "selected", "ranking", "model", "gate", *more)
    ]
    assert "extra" not in summary["baselines"]
    run = summary["runs"]["lora"]
    assert set(run["training"]) == TRAINING | {"best_step"}
    assert set(run["stages"]) == {
        "adapter",
        "merged",
        *(f"onnx-{v}" for v in ("int4", "int4-mixed", "fp32", "cuda-int4")),
    }
    assert all(set(stage) == STAGE for stage in run["stages"].values())
    scored = [stage["validation"] for stage in run["stages"].values() if stage["validation"]]
    baselines = [quality for splits in summary["baselines"].values() for quality in splits.values()]
    base = [summary["base"][split] for split in ("validation", "test")]
    for quality in [*scored, *baselines, *base, summary["model"]["test"]]:
        assert quality.keys() >= QUALITY[made.task]
    for quality in [*scored, summary["model"]["test"]]:
        assert set(quality["against"]) == AGAINST
    assert set(summary["model"]) == {
        "test",
        "compared",
        "size_mb",
        "first_token_ms",
        "tokens_per_second",
        "peak_rss_mb",
    }
    assert set(run) == {"training", "merge", "stages"}
    assert set(summary["selected"]) == {"run", "variant", "reason", "rejected", "compared", "candidates"}
    assert set(summary["gate"]) == {"passed", "checks"}


def test_numbers_of_rows_come_from_audit_and_split(made):
    data = made.read("summary.json")["data"]
    assert data["rejected"] == data["rows"] - data["kept"] == 20
    assert (data["train"], data["validation"], data["test"]) == (150, 150, 220)
    assert made.read("summary.json")["tokenizer"] == {"rows": 520, "differ": 3, "error": None, "asked_otherwise": 0}


def test_each_stage_is_compared_with_the_one_before(made):
    summary = made.read("summary.json")
    stages = summary["runs"]["lora"]["stages"]
    names = {stage: facts["validation"]["against"]["name"] for stage, facts in stages.items() if facts["validation"]}
    assert names == {
        "adapter": "base",
        "merged": "adapter",
        "onnx-int4": "merged",
        "onnx-int4-mixed": "merged",
        "onnx-fp32": "merged",
    }
    rival = "tfidf_logreg" if made.task == "classification" else "nearest_question"
    assert summary["model"]["test"]["against"]["name"] == rival
    assert summary["base"]["validation"]["against"] is None
    assert stages["merged"]["validation"]["flips"] == 0
    assert stages["adapter"]["validation"]["against"]["wins"] > 10
    if made.task == "classification":
        assert stages["onnx-int4"]["validation"]["flips"] == 9  # 6 % of 150 were changed
        assert stages["onnx-int4"]["validation"]["kl"] > stages["onnx-int4-mixed"]["validation"]["kl"] > 0


def test_differences_are_those_of_the_scores_with_their_intervals(made):
    summary = made.read("summary.json")
    main = "accuracy" if made.task == "classification" else "chrf"
    stages = {"base": summary["base"]["validation"]}
    stages |= {name: stage["validation"] for name, stage in summary["runs"]["lora"]["stages"].items()}
    for quality in [stages["adapter"], stages["onnx-int4"]]:
        against = quality["against"]
        low, high = against["difference_ci95"][main]
        assert against["difference"][main] == pytest.approx(quality[main] - stages[against["name"]][main])
        assert low <= against["difference"][main] <= high
    assert stages["adapter"]["against"]["difference_ci95"][main][0] > 0


def test_the_model_is_compared_with_every_baseline_and_the_base(made):
    summary = made.read("summary.json")
    compared, model = summary["model"]["compared"], summary["model"]["test"]
    main = "accuracy" if made.task == "classification" else "chrf"
    rivals = {name: splits["test"] for name, splits in summary["baselines"].items()} | {"base": summary["base"]["test"]}
    assert compared.keys() == rivals.keys()
    for name, quality in rivals.items():
        assert compared[name]["difference"][main] == pytest.approx(model[main] - quality[main])
    assert compared[model["against"]["name"]] == model["against"]


def test_the_comparison_with_tfidf_is_on_test_rows(made):
    if made.task == "generation":
        pytest.skip("labels only")
    lines = made.path("scores/baselines.predictions.jsonl").read_text().splitlines()
    rival = {
        row["id"]: row["predicted"] == row["label"]
        for row in map(json.loads, lines)
        if row["baseline"] == "tfidf_logreg" and row["split"] == "test"
    }
    model = map(json.loads, made.path("scores/model.test.predictions.jsonl").read_text().splitlines())
    counts = Counter((row["predicted"] == row["label"], rival[row["id"]]) for row in model)
    against = made.read("summary.json")["model"]["test"]["against"]
    assert (against["wins"], against["losses"]) == (counts[True, False], counts[False, True])


def test_builds_that_were_not_scored_say_so(made):
    stages = made.read("summary.json")["runs"]["lora"]["stages"]
    cuda = stages["onnx-cuda-int4"]
    assert (cuda["validation"], cuda["verified"], cuda["size_mb"]) == (None, False, 95.0)
    assert stages["onnx-int4"]["verified"] is True
    assert stages["adapter"]["verified"] is None


def test_folders_of_base_adapter_and_merged_have_their_size(made):
    summary = made.read("summary.json")
    stages = summary["runs"]["lora"]["stages"]
    assert [summary["base"]["size_mb"], *(stages[name]["size_mb"] for name in ("adapter", "merged"))] == [2.0] * 3


def test_the_model_has_the_speed_of_the_selected_variant(made):
    summary = made.read("summary.json")
    stage = summary["runs"]["lora"]["stages"][f"onnx-{summary['selected']['variant']}"]
    assert {key: summary["model"][key] for key in ("size_mb", "tokens_per_second", "peak_rss_mb")} == {
        key: stage[key] for key in ("size_mb", "tokens_per_second", "peak_rss_mb")
    }


def test_every_variant_of_every_run_can_be_explained_from_the_summary_alone(made_sweep):
    summary = made_sweep.read("summary.json")
    candidates = {(one["run"], one["variant"]): one for one in summary["selected"]["candidates"]}
    built = {
        (run, stage.removeprefix("onnx-"))
        for run, facts in summary["runs"].items()
        for stage in facts["stages"]
        if "onnx" in stage
    }
    assert candidates.keys() == built
    assert all(one["reason"] for one in candidates.values())
    (chosen,) = (name for name, one in candidates.items() if one["chosen"])
    assert chosen == (summary["selected"]["run"], summary["selected"]["variant"])
    for (run, variant), one in candidates.items():
        stage = summary["runs"][run]["stages"][f"onnx-{variant}"]
        assert one["value"] == (stage["validation"] and stage["validation"]["macro_f1"])
        assert one["value_ci95"] == (stage["validation"] and stage["validation"]["macro_f1_ci95"])
    groups = [(one["group"], one["variant"]) for one in summary["ranking"]]
    assert len(groups) == len(set(groups)) == 6 * 3
    assert {tuple(one["seeds"]) for one in summary["ranking"] if one["group"].startswith("lora")} == {(1, 2, 3)}


def test_runs_that_were_not_trained_here_have_what_there_is(made_sweep):
    runs = made_sweep.read("summary.json")["runs"]
    assert list(runs) == list(made_sweep.runs)
    variants = ["onnx-int4", "onnx-int4-mixed", "onnx-fp32", "onnx-cuda-int4"]
    wanted = {
        "lora-r-8-seed-1": ("adapter", "merged"),
        "qlora": ("adapter", "merged-original", "merged-dequantized", "merged"),
        "given-adapter": ("adapter", "merged"),
        "given-merged": ("merged",),
        "base": (),
    }
    for run, stages in wanted.items():
        assert list(runs[run]["stages"]) == [*stages, *variants]
        assert (runs[run]["training"] is None) == (run in ("given-adapter", "given-merged", "base"))
        assert (runs[run]["merge"] is None) == (run != "qlora")
    assert runs["qlora"]["merge"] == made_sweep.read("runs/qlora/merge.json")


def test_each_stage_of_any_run_is_compared_with_what_it_was_made_from(made_sweep):
    before = {
        run: {
            stage: one["validation"]["against"]["name"] for stage, one in facts["stages"].items() if one["validation"]
        }
        for run, facts in made_sweep.read("summary.json")["runs"].items()
    }
    assert before["qlora"]["adapter"] == before["given-adapter"]["adapter"] == "base"
    assert {before["qlora"][f"merged{kind}"] for kind in ("", "-original", "-dequantized")} == {"adapter"}
    assert before["given-merged"]["merged"] == "base"
    for run, names in before.items():
        assert {names[f"onnx-{variant}"] for variant in ("int4", "fp32")} == {"base" if run == "base" else "merged"}


def test_folders_that_are_gone_keep_their_size(made, tmp_path):
    """`keep: selected` drops them once they are scored."""
    run = made.copied(tmp_path / "run")
    for stage in ("adapter", "merged"):
        run.path(f"runs/lora/{stage}/weights.bin").unlink()
    run.path("summary.json").unlink()
    run.summarize()
    assert run.read("summary.json") == made.read("summary.json")


def test_the_last_lines_of_a_run_come_from_its_summary(made_sweep):
    summary = made_sweep.read("summary.json")
    text = format_headline(made_sweep.folder)
    assert text.startswith(
        f"chosen: {summary['selected']['run']}/{summary['selected']['variant']}: the best macro-F1 (0."
    )
    assert summary["verdict"]["text"] in text
    assert summary["verdict"] == dict(
        zip(("text", "ship"), findings.state_verdict("classification", summary), strict=True)
    )  # the report's own sentence


def test_a_score_of_another_model_is_refused(made, tmp_path):
    run = made.copied(tmp_path / "run")
    run.path("summary.json").unlink()
    run.path("assembled.manifest.json").write_text('{"files": {}}')
    done = run.summarize(check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: scores/model.test.json: this score was computed from a different model than assembled.manifest.json"
    )
    assert not run.path("summary.json").exists()


def test_scores_are_told_with_and_without_the_test_rows_that_leak(made, tmp_path):
    run = made.copied(tmp_path / "run")
    leakage = run.read("corpus/leakage.json")
    ids = [row["id"] for row in run.rows["test"][:40]]
    write_json(run.path("corpus/leakage.json"), leakage | {"leaking": {"validation": [], "test": ids}, "pairs": []})
    run.summarize()
    run.write_report()
    leaks = run.read("summary.json")["leaks"]
    assert leaks["rows"] == 40
    assert {one["n"] for one in leaks["without"].values()} == {180}
    assert set(leaks["without"]) >= {"model", "base"}
    assert "40 test rows are like rows of an earlier split; model without them: " in format_headline(run.folder)
    page = run.path("report.html").read_text()
    assert "40 of 220 test rows are the same as a row of an earlier split" in page
    assert "Test scores with and without the rows" in page
    write_json(
        run.path("corpus/leakage.json"), leakage | {"leaking": {"test": [row["id"] for row in run.rows["test"]]}}
    )
    run.summarize()
    run.write_report()
    assert "model without them: none is left" in format_headline(run.folder)


def test_probabilities_are_corrected_and_the_threshold_is_worth_what_test_rows_say(made, tmp_path):
    if made.task == "generation":
        assert "probabilities" not in made.read("summary.json")
        return
    plain = made.read("summary.json")["probabilities"]
    assert "threshold" not in plain
    assert plain["validation"]["after"]["nll"] <= plain["validation"]["before"]["nll"]
    run = made.copied(tmp_path / "run")
    run.summarize(coverage=0.5)
    found = run.read("summary.json")["probabilities"]
    assert found["validation"]["answered"]["coverage"] == found["coverage"] >= 0.5
    low, high = found["test"]["answered"]["coverage_ci95"]
    assert low <= found["test"]["answered"]["coverage"] <= high
    said = format_headline(run.folder)
    assert f"sure enough to answer: {found['test']['answered']['coverage']:.3f} of the test rows [" in said
    run.write_report()
    assert "the test rows [" in run.path("report.html").read_text()
    run.summarize(precision=1.0)
    none = run.read("summary.json")["probabilities"]
    if none["threshold"] is None:
        assert none["test"]["answered"]["precision"] is None
        assert "every test row is unsure" in format_headline(run.folder)
