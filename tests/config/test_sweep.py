"""A grid becomes runs and variants: every combination once, named after what it changes."""

import itertools

import pytest
import yaml

from lib.config.loader import load_config
from lib.config.schema import Config
from lib.config.sweep import expand_runs, expand_variants
from lib.config.training import Finetune
from lib.core.cli import UserError
from support.paths import ROOT

FINETUNE = Finetune().model_dump()


def config(**sections) -> Config:
    path = ROOT / "config.yaml"
    return load_config(yaml.safe_load(path.read_text()) | sections, [path])


def refused(**sections) -> str:
    with pytest.raises(UserError) as caught:
        config(**sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_sweep_there_is_one_run_named_after_its_method():
    runs = expand_runs(FINETUNE, {}, [3])
    assert list(runs) == ["lora"]
    assert (runs["lora"].group, runs["lora"].seed, runs["lora"].finetune) == ("lora", 3, FINETUNE)


def test_every_combination_is_a_run_and_seeds_share_a_group():
    runs = expand_runs(FINETUNE, {"method": ["lora", "dora"], "r": [8, 16], "learning_rate": [1e-4]}, [0, 1])
    assert len(runs) == 8
    assert list(runs)[:2] == ["lora-r-8-learning-rate-0-0001-seed-0", "lora-r-8-learning-rate-0-0001-seed-1"]
    assert len({run.group for run in runs.values()}) == 4
    run = runs["dora-r-16-learning-rate-0-0001-seed-1"]
    assert (run.finetune["method"], run.finetune["r"], run.seed) == ("dora", 16, 1)
    assert run.finetune["lora_alpha"] == FINETUNE["lora_alpha"], "what is not swept stays"


def test_variants_are_expanded_where_the_sweep_names_them():
    found = expand_variants({"a": {"x": 1, "y": None}, "b": {"x": 2}}, {"a": {"y": [None, True], "x": [3, 4]}})
    assert found == {
        "a-y-none-x-3": {"x": 3, "y": None},
        "a-y-none-x-4": {"x": 4, "y": None},
        "a-y-true-x-3": {"x": 3, "y": True},
        "a-y-true-x-4": {"x": 4, "y": True},
        "b": {"x": 2},
    }


def test_names_that_collide_are_refused():
    with pytest.raises(ValueError, match="two combinations are both called lora-alpha-1-5"):
        expand_runs(FINETUNE, {"lora_alpha": [1.5, "1,5"]}, [0])


@pytest.mark.parametrize(
    ("finetune", "name", "stages", "merges"),
    [
        ({"method": "lora"}, "lora", ("adapter", "merged"), ("merged",)),
        (
            {"method": "qlora"},
            "qlora",
            ("adapter", "merged-original", "merged-dequantized", "merged"),
            ("merged-original", "merged-dequantized"),
        ),
        ({"adapter": "x"}, "given-adapter", ("adapter", "merged"), ("merged",)),
        (
            {"adapter": "x", "method": "qlora"},
            "given-adapter",
            ("adapter", "merged-original", "merged-dequantized", "merged"),
            ("merged-original", "merged-dequantized"),
        ),
        ({"merged": "x"}, "given-merged", ("merged",), ()),
        ({"method": "none"}, "base", (), ()),
    ],
)
def test_what_is_brought_along_needs_no_training(finetune, name, stages, merges):
    run = config(finetune=finetune).runs[name]
    assert (run.stages, run.merges) == (stages, merges)
    assert run.trained == (name in ("lora", "qlora"))


def test_the_configuration_checks_every_value_of_a_sweep():
    assert "sweep.finetune.rr: no such key, did you mean r?" in refused(sweep={"finetune": {"rr": [1]}})
    assert "sweep.finetune.r: Input should be greater than or equal to 1 (0)" in refused(sweep={"finetune": {"r": [0]}})
    assert "sweep.finetune.r: lists no value" in refused(sweep={"finetune": {"r": []}})
    assert "sweep.finetune.r: input should be a valid list" in refused(sweep={"finetune": {"r": 8}})
    assert "sweep.variants.x: no such variant" in refused(sweep={"variants": {"x": {"block_size": [32]}}})
    assert "sweep.seed: holds a seed twice" in refused(sweep={"seed": [1, 1]})
    text = refused(sweep={"variants": {"int4": {"algo_config": ["rtn", "auto_round"], "use_qdq": [True]}}})
    assert "int4-algo-config-auto-round-use-qdq-true): use_qdq" in text


def test_contradictions_are_told():
    assert "finetune: give adapter: or merged:" in refused(finetune={"adapter": "x", "merged": "y"})
    assert "finetune: method: none quantizes the base" in refused(finetune={"method": "none", "adapter": "x"})
    assert "calibration belongs to algo_config: gptq or auto_round" in refused(
        variants={"a": {"calibration": {"rows": 8}}}
    )
    assert "calibration.iterations is for auto_round and not for gptq" in refused(
        variants={"a": {"algo_config": "gptq", "calibration": {"iterations": 5}}}
    )
    assert "auto_round makes int4 only" in refused(variants={"a": {"algo_config": "auto_round", "precision": "int8"}})
    faq = yaml.safe_load((ROOT / "examples/faq.yaml").read_text()) | {"finetune": {"class_balance": "weight"}}
    with pytest.raises(UserError, match="class_balance: belongs to task classification"):
        load_config(faq, [ROOT / "examples/faq.yaml"])
    assert "class_balance needs rows" in refused(
        finetune={"class_balance": "weight", "corpus_strategy": "join", "loss": "all"}
    )


def test_seeds_of_nothing_and_answers_of_no_rows_are_refused():
    assert "sweep.seed: nothing is trained here" in refused(finetune={"method": "none"}, sweep={"seed": [0, 1]})
    path = ROOT / "examples/faq.yaml"
    values = yaml.safe_load(path.read_text()) | {"evaluate": {"greedy_rows": 0}}
    with pytest.raises(UserError, match="evaluate.greedy_rows: 0 leaves no free answers"):
        load_config(values, [path])


def test_a_calibrated_variant_has_its_defaults():
    own = {"algo_config": "gptq", "calibration": {"rows": 9}}
    found = config(
        variants={"a": {"algo_config": "auto_round", "calibration": {"rows": None}}, "b": {}, "c": own}
    ).every_variant
    calibrations = {name: variant.calibration and variant.calibration.model_dump() for name, variant in found.items()}
    assert calibrations == {
        "a": {"rows": 128, "length": 128, "iterations": 50},
        "b": None,
        "c": {"rows": 9, "length": None, "iterations": None},
    }


GRID = {"r": [4, 8, 16, 32], "learning_rate": [1e-4, 3e-4, 1e-3], "method": ["lora", "dora"]}


def sample(count: int | None, grid: dict = GRID, seed: int = 0, **section) -> dict:
    return expand_runs(FINETUNE | section, grid, [0, 1], sample=count, sample_seed=seed)


def drawn_settings(runs: dict) -> set[tuple]:
    return {(*(run.finetune[key] for key in GRID), run.seed) for run in runs.values()}


def test_a_larger_sample_holds_every_smaller_one_and_the_whole_grid_is_as_without_a_sample():
    whole = sample(None)
    assert len(whole) == 48
    samples = [sample(count) for count in range(1, 49)]
    for count, (smaller, larger) in enumerate(itertools.pairwise(samples), start=1):
        assert len(smaller) == count
        assert smaller.items() <= larger.items() <= whole.items()
    assert list(samples[-1].items()) == list(whole.items())
    assert [name for name in whole if name in samples[19]] == list(samples[19])


def test_a_sample_follows_from_the_seed_and_not_from_the_rest_of_the_configuration():
    first = sample(10)
    assert list(sample(10)) == list(first)
    assert list(sample(10, lora_alpha=99, eval_steps=7)) == list(first)
    turned = sample(10, {key: GRID[key][::-1] for key in reversed(GRID)})
    assert list(turned) != list(first), "the names follow the grid"
    assert drawn_settings(turned) == drawn_settings(first)
    others = [set(sample(10, seed=seed)) for seed in range(5)]
    assert len({frozenset(other) for other in others}) == 5
    drawn = [name for seed in range(400) for name in sample(6, seed=seed)]
    assert min(map(drawn.count, sample(None))) > 25, "each of 48 runs is drawn in about 50 of 400 samples"


def test_more_values_leave_the_drawn_runs_of_the_old_grid_in_their_order():
    grown = GRID | {"r": [*GRID["r"], 64]}
    old = [name for name in sample(30, grown) if "r-64" not in name]
    assert set(old) == set(sample(len(old)))


def test_the_configuration_draws_and_keeps_its_runs():
    whole = config(sweep={"finetune": GRID, "seed": [0, 1]}).runs
    drawn = config(sweep={"finetune": GRID, "seed": [0, 1], "sample": 20}).runs
    assert len(drawn) == 20
    assert drawn.items() <= whole.items()


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (
            {"finetune": {"r": [4, 8]}, "seed": [0, 1, 2], "sample": 7},
            "sweep: sample: 7 is more than the 6 runs of the grid",
        ),
        (
            {"finetune": {"r": [4, 8]}, "sample": 0},
            "sweep.sample: input should be greater than or equal to 1 (found 0)",
        ),
        ({"seed": [0, 1], "sample": 1}, "sweep: sample: is drawn from the grid of finetune:, which is not there"),
        ({"finetune": {"r": []}, "sample": 2}, "sweep.finetune.r: lists no value"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_told(sweep, expected):
    assert expected in refused(sweep=sweep)
