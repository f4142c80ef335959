"""The configuration: what is accepted, and how a mistake is told."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from lib.cli import UserError
from lib.config import METRICS
from lib.config_file import check_yaml, load_config


def load(text: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check_yaml(path)
    return load_config(yaml.safe_load(text), [path])


def changed(old: str, new: str) -> str:
    text = (ROOT / "config.yaml").read_text()
    assert old in text
    return text.replace(old, new, 1)


SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path):
    check_yaml(path)
    load_config(yaml.safe_load(path.read_text()), [path])


def test_shipped_configurations_never_share_an_output_folder():
    folders = [yaml.safe_load(path.read_text()).get("results", "results") for path in SHIPPED]
    assert len(set(folders)) == len(folders)


def test_the_seed_recipe_is_expressible():
    """Every setting of the recipe that slmflow replaces stands in examples/phi3-mini.yaml with its value."""
    config = load_config(yaml.safe_load((ROOT / "examples/phi3-mini.yaml").read_text()), [])
    finetune = config.finetune
    assert (finetune.r, finetune.alpha, finetune.dropout) == (64, 64, 0.1)
    assert finetune.target_modules == ["o_proj", "qkv_proj"]
    assert (finetune.corpus_strategy, finetune.source_max_len, finetune.loss) == ("join", 2048, "all")
    assert (config.seed, finetune.data_seed, finetune.max_steps) == (0, 42, 10)
    assert (finetune.per_device_train_batch_size, finetune.gradient_accumulation_steps) == (1, 4)
    assert (finetune.learning_rate, finetune.adam_beta2, finetune.max_grad_norm) == (1e-4, 0.999, 0.3)
    assert finetune.group_by_length
    assert not finetune.gradient_checkpointing
    assert config.corpus.text_template == "### Text: {phrase}\n### The tone is:\n{tone}"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    assert load(changed("3.0e-4", "3e-4"), tmp_path).finetune.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("  r: 16", "  lora_r: 16", "  lora_r", "finetune.lora_r is not a known key; it is called finetune.r here"),
        ("  r: 16", "  rr: 16", "  rr", "finetune.rr is not a known key; did you mean r?"),
        ("seed: 0", "seed: 0\nepochs: 2", "epochs", "epochs is not a known key; it belongs to finetune.epochs"),
        ("seed: 0", "seed: zero", "seed", "seed: input should be a valid integer"),
        ("  r: 16", "  r: -1", "  r:", "finetune.r: input should be greater than or equal to 1"),
        ("  int4: {}", "  Int4: {}", "  Int4", "variants: the name 'Int4' cannot be used; use a-z, 0-9 and - (not first)"),
        ("  int4: {}", "  -int4: {}", "  -int4", "variants: the name '-int4' cannot be used; use a-z, 0-9 and - (not first)"),
        *(("results: results", f"results: {name}", "results", f"results: the folder '{name}' cannot be used; use A-Z, a-z, 0-9 . _ / and - (not first)") for name in ("my results", "-out", "./-out", "$(x)")),
        ("  int4: {}", "  int4: {precision: fp16}", "  int4:", "variants.int4: cpu cannot run fp16"),
        ("  int4: {}", "  int4: {blocksize: 32}", "  int4:", "variants.int4.blocksize is not a known key; did you mean block_size"),
        ("algo_config: k_quant", "algo_config: gptq", "    algo_config", "variants.int4-k-quant.algo_config: input should be"),
        ("  target: sentiment", "  targets: sentiment", "  targets", "data.targets is not a known key; did you mean target?"),
        ("test: 0.15", "test: 0.95", "split", "split: validation and test together must leave rows"),
        ("{text}", "", "corpus", "corpus: the template names no column"),
        ("text_template: ", "template: chat\n  user: ", "corpus", "corpus: the question holds {sentiment}"),
        ("{text}", "{text!r}", "corpus", "corpus: template: {text} has a format or conversion"),
        ("{text}", "{text[0]}", "corpus", "corpus: template: {text[0]} is not a column"),
        ("{text}", "{text", "corpus", "corpus: template"),
        ("    accuracy: 0.70", "    chrf: 0.70", "    chrf", "gate.minimum.chrf: task classification has no metric chrf"),
        ("    accuracy: 0.70", "    accuracy: 70", "    accuracy", "gate.minimum.accuracy: 70 can never be reached, accuracy goes up to 1"),
        ("max_size_mb: 200", "min_quality: 77.5", "  min_quality", "selection.min_quality: 77.5 can never be reached, macro_f1 goes up to 1"),
        ("max_size_mb: 200", "metric: chrf", "  metric", "selection.metric: task classification has no metric chrf"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_the_nearest_name(tmp_path, old, new, line, expected):
    text = changed(old, new)
    number = next(place for place, row in enumerate(text.splitlines(), 1) if row.startswith(line))
    with pytest.raises(UserError) as caught:
        load(text, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/config.yaml:{number}: {expected}"), caught.value


@pytest.mark.parametrize(
    ("written", "meant"), [("./out/", "out"), ("a//b", "a/b"), ("../out", "../out"), ("/out", "/out")]
)
def test_a_results_folder_has_one_spelling(tmp_path, written, meant):
    assert load(changed("results: results", f"results: {written}"), tmp_path).results == meant


def test_a_branch_is_not_a_revision(tmp_path):
    text = (ROOT / "examples/phi3-mini.yaml").read_text().replace("f39ac1d28e925b323eae81227eaba4464caced4e", "main")
    with pytest.raises(UserError, match=r"base_model.hub.revision is not a commit \(found 'main'\)"):
        load(text, tmp_path)


def test_two_sources_or_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="data: give exactly one of files, hub, package"):
        load(changed("  files: [data/raw/tweets.json]", "  unreadable: error"), tmp_path)
    with pytest.raises(UserError, match="base_model: give exactly one of path, hub, package"):
        load(changed("base_model:\n", "base_model:\n  path: x\n"), tmp_path)


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path):
    text = changed("  r: 16", "  r: 16\n  r: 32")
    number = text.splitlines().index("  r: 32") + 1
    with pytest.raises(UserError, match=rf"config.yaml:{number}: r stands twice \(first in line {number - 1}\)"):
        load(text, tmp_path)


def test_the_error_of_a_command_line_value_does_not_blame_a_file_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text((ROOT / "config.yaml").read_text())
    values = yaml.safe_load(path.read_text())
    values["finetune"]["lerning_rate"] = 1
    with pytest.raises(UserError, match="finetune.lerning_rate is not a known key"):
        load_config(values, [path])


@pytest.mark.parametrize("task", METRICS)
def test_every_metric_can_be_gated_and_selected(task, tmp_path):
    base = "config.yaml" if task == "classification" else "examples/faq.yaml"
    for metric in METRICS[task]:
        values = yaml.safe_load((ROOT / base).read_text())
        values.update(selection={"metric": metric}, gate={"minimum": {metric: 0}})
        assert load_config(values, []).selection.metric == metric
