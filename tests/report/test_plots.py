"""The tables behind the plots, of a made-up run of each task."""

import csv

from lib.core.files import read_json, write_json
from support.made_run import MadeRun


def tables(made: MadeRun, run_script, folder) -> dict[str, list[dict[str, str]]]:
    names = ("learning_curve", "confusion", "variants")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", folder / f"{name}.csv")]
    words += ["--summary", made.path("summary.json"), "--metrics", folder / "metrics.json", *made.results()]
    run_script(
        "write_plots", *words, "--model-predictions", made.path("scores/model.test.predictions.jsonl"), cwd=made.folder
    )
    found = {}
    for name in names:
        with open(folder / f"{name}.csv", newline="") as file:
            found[name] = list(csv.DictReader(file))
    return found


def test_each_table_has_the_numbers_of_the_run(made, run_script, tmp_path):
    found = tables(made, run_script, tmp_path)
    summary = made.read("summary.json")
    scored = [one for one in summary["selected"]["candidates"] if one["value"] is not None]
    assert [(row["variant"], float(row["quality"])) for row in found["variants"]] == [
        (one["variant"], one["value"]) for one in scored
    ]
    curve = made.read(f"runs/{summary['selected']['run']}/training.json")["curve"]
    assert [int(row["step"]) for row in found["learning_curve"]] == [point["step"] for point in curve]
    losses = [row["training_loss"] for row in found["learning_curve"] if row["training_loss"]]
    assert losses == [str(point["loss"]) for point in curve if "loss" in point]


def test_confusion_is_there_for_labels_alone(made, run_script, tmp_path):
    rows = tables(made, run_script, tmp_path)["confusion"]
    if made.task == "generation":
        assert rows == []
        return
    right = sum(row["actual"] == row["predicted"] for row in rows)
    test = made.read("summary.json")["model"]["test"]
    assert len(rows) == test["n"]
    assert right / len(rows) == test["accuracy"]


def test_a_run_that_was_not_trained_here_has_no_curve(made, run_script, tmp_path):
    made = made.copied(tmp_path / "copy")
    out = {name: tmp_path / f"{name}.csv" for name in ("learning-curve", "confusion", "variants", "metrics")}
    given = [word for name, path in out.items() for word in (f"--{name}", path)]
    predictions = ("--model-predictions", made.path("scores/model.test.predictions.jsonl"))
    summary = made.read("summary.json")
    summary["runs"][summary["selected"]["run"]]["training"] = None
    write_json(made.path("summary.json"), summary)
    words = ("--summary", "summary.json", *made.results())
    run_script("write_plots", *words, *given, *predictions, cwd=made.folder)
    assert out["learning-curve"].read_text() == "step,training_loss,validation_loss,macro_f1,chrf\n"


def test_the_headline_numbers_are_those_of_the_summary(made, run_script, tmp_path):
    tables(made, run_script, tmp_path)
    found, summary = read_json(tmp_path / "metrics.json"), made.read("summary.json")
    main = "accuracy" if made.task == "classification" else "chrf"
    stages = summary["runs"][summary["selected"]["run"]]["stages"]
    assert found["test"][main] == summary["model"]["test"][main]
    assert found["validation"][main] == stages[f"onnx-{summary['selected']['variant']}"]["validation"][main]
    assert found["rivals"].keys() == {"base", *summary["baselines"]}
    assert found["gate_passed"] == summary["gate"]["passed"]
