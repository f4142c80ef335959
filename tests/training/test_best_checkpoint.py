"""Which checkpoint is kept and when training ends: by the task's own metric, measured without touching the training."""

import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerState

from lib.core.files import read_json, read_jsonl, write_json, write_jsonl
from lib.data.templates import compile_template, render_completion
from lib.data.tokenizer import load_tokenizer
from lib.evaluation import torch_scorer
from lib.evaluation.metrics import measure_quality
from lib.evaluation.registry import SELECTED_BY
from lib.models.loading import load_adapter, load_model
from lib.training import packing
from lib.training.adapter import save_adapter
from lib.training.callbacks import find_last_checkpoint, has_stopped_early, list_validations
from lib.training.trainer import AdapterTrainer
from support.trainer import Taught, Weights, equal, trainable
from support.training import EVALUATE, LABELS, adapter_hash, make_corpus, train, train_command


def generation_corpus(base: Path, folder: Path) -> Path:
    """The rows of `make_corpus` with free answers instead of labels."""
    template = compile_template(
        {"user": "Tone? {text}"}, load_tokenizer(base), task="generation", target="tone", labels=None
    )
    make_corpus(base, folder)
    for split in ("train", "validation"):
        rows = list(read_jsonl(folder / f"{split}.jsonl"))
        answers = (render_completion(template, f"so much {row.pop('label')}") for row in rows)
        write_jsonl(folder / f"{split}.jsonl", [{**row, "completion": next(answers)} for row in list(rows)])
    write_json(folder / "template.json", template)
    return folder


@pytest.fixture(scope="module")
def corpus(tiny_model, tmp_path_factory) -> Path:
    return make_corpus(tiny_model, tmp_path_factory.mktemp("corpus"))


# The metric


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["fused", "peft"])
def test_probabilities_while_training_are_those_of_the_saved_adapter(tiny_model, corpus, tmp_path, dropout):
    taught, seen = Taught(tiny_model, corpus, tmp_path / "work", lora_dropout=dropout, max_steps=4), []

    def measure(model: Any) -> dict[str, float]:
        seen.append(taught.predictions(model))
        return taught.task_quality()(model)

    trainer = taught.trainer(measure)
    trainer.train()
    assert taught.model.base_model.model.config._attn_implementation == packing.ATTENTION, "it was trained packed"
    save_adapter(taught.model, tmp_path / "adapter")
    found = taught.predictions(load_adapter(load_model(tiny_model), tmp_path / "adapter"))
    for while_training, afterwards in zip(seen[-1], found, strict=True):
        assert while_training["log_probs"] == pytest.approx(afterwards["log_probs"], abs=1e-5)
    whole = measure_quality("classification", found, LABELS, seed=0, samples=10)["quality"]
    assert trainer.state.log_history[-2]["eval_macro_f1"] == whole["macro_f1"]


def test_the_scores_of_the_labels_tell_the_validation_loss(tiny_model, corpus, tmp_path):
    taught = Taught(tiny_model, corpus, tmp_path)
    trainer = taught.trainer(partial(taught.task_quality(), with_loss=True))
    taught.model.eval()
    expected = trainer._compute_validation_loss()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.measure = taught.task_quality()
    assert trainer.evaluate()["eval_loss"] == expected


def test_chrf_while_training_is_that_of_the_first_rows_answers(tiny_llama, tmp_path):
    corpus = generation_corpus(tiny_llama, tmp_path / "corpus")
    done = train(tiny_llama, corpus, tmp_path, tmp_path / "work")
    assert done.returncode == 0, done.stderr
    facts = read_json(tmp_path / "training.json")
    assert facts["best_by"] == "chrf"
    assert f"validation chrf {facts['best_value']:.4f}" in done.stderr

    model, tokenizer = load_adapter(load_model(tiny_llama), tmp_path / "adapter"), load_tokenizer(tiny_llama)
    template, rows = read_json(corpus / "template.json"), list(read_jsonl(corpus / "validation.jsonl"))
    predictions = torch_scorer.score_references(model, tokenizer, template, rows, 4)
    torch_scorer.add_answers(model, tokenizer, template, rows, predictions, EVALUATE)
    assert any(row["answer"] for row in predictions)
    found = measure_quality("generation", predictions, None, seed=0, samples=10)["quality"]["chrf"]
    assert facts["best_value"] == pytest.approx(found, abs=1e-6)
    assert facts["class_balance"] is None


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_in_bfloat16_the_metric_is_measured_too(tiny_phi3, tmp_path, task):
    make = make_corpus if task == "classification" else generation_corpus
    done = train(tiny_phi3, make(tiny_phi3, tmp_path / "corpus"), tmp_path, tmp_path / "work", dtype="bfloat16")
    assert done.returncode == 0, done.stderr
    facts = read_json(tmp_path / "training.json")
    assert (facts["dtype"], facts["best_by"]) == ("bfloat16", SELECTED_BY[task])


def test_blocks_of_joined_rows_are_chosen_by_the_rows_themselves(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    done = train(tiny_llama, corpus, tmp_path, tmp_path / "work", corpus_strategy="join", loss="all", lora_dropout=0.0)
    assert done.returncode == 0, done.stderr
    model, tokenizer = load_adapter(load_model(tiny_llama), tmp_path / "adapter"), load_tokenizer(tiny_llama)
    template, rows = read_json(corpus / "template.json"), list(read_jsonl(corpus / "validation.jsonl"))
    found = measure_quality(
        "classification",
        torch_scorer.score_labels(model, tokenizer, template, rows, 8),
        **{"labels": LABELS, "seed": 0, "samples": 10},
    )
    assert read_json(tmp_path / "training.json")["best_value"] == found["quality"]["macro_f1"]


# What validation leaves behind: nothing


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_validation_leaves_everything_as_it_was(tiny_model, corpus, tmp_path, gradient_checkpointing):
    taught = Taught(tiny_model, corpus, tmp_path, lora_dropout=0.1, gradient_checkpointing=gradient_checkpointing)

    def measure(model: Any) -> dict[str, float]:
        assert not any(part.training for part in model.modules())
        assert model.base_model.model.config._attn_implementation != packing.ATTENTION
        torch.rand(3)
        return taught.task_quality()(model)

    checked = []

    class Between(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            before = [snapshot(given["model"]), torch.get_rng_state()]
            trainer.evaluate()
            after = [snapshot(given["model"]), torch.get_rng_state()]
            checked.append(before[0] == after[0] and torch.equal(before[1], after[1]))

    def snapshot(model: Any) -> list[Any]:
        tensors = [part for part in model.parameters() if part.requires_grad]
        return [
            [part.sum().item() for part in tensors],
            [None if part.grad is None else part.grad.abs().sum().item() for part in tensors],
            [part.training for part in model.modules()],
            model.base_model.model.config._attn_implementation,
            torch.is_grad_enabled(),
        ]

    taught.settings |= {"max_steps": 2, "eval_steps": 100}
    trainer = taught.trainer(measure, Between())
    trainer.train()
    assert checked == [True, True]


def test_neither_how_often_nor_by_what_is_validated_changes_what_is_learned(tiny_model, corpus, tmp_path):
    """With dropout, which draws: the same weights, byte for byte, with 8 validations in between and with none."""
    last = []
    for number, eval_steps in enumerate((1, 100)):
        taught, weights = Taught(tiny_model, corpus, tmp_path / str(number), lora_dropout=0.1, max_steps=8), Weights()
        taught.settings["eval_steps"] = eval_steps
        trainer = taught.trainer(taught.task_quality() if number == 0 else None, weights)
        trainer.train()
        last.append(weights.behind[8])
    assert equal(*last)


# The choice


@pytest.mark.parametrize(
    ("validations", "best"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 2),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], 2),
        ([(0.5, 1.0), (0.5, 1.0)], 1),
        ([(None, 1.0), (None, 0.8), (None, 0.8), (None, 0.9)], 2),
    ],
    ids=["higher metric", "then lower loss", "then earlier", "loss alone"],
)
def test_the_best_is_the_higher_metric_then_the_lower_loss_then_the_earlier_step(validations, best, tmp_path):
    """Whatever the state goes through between two validations: it is read back from JSON each time."""
    state = TrainerState()
    for step, (metric, loss) in enumerate(validations, start=1):
        state.global_step = step
        metrics = {"eval_loss": loss} | ({} if metric is None else {"eval_chrf": metric})
        is_new = AdapterTrainer._determine_best_metric(SimpleNamespace(state=state), metrics, None)
        assert is_new == (state.best_global_step == step)
        state.save_to_json(str(tmp_path / "state.json"))
        state = TrainerState.load_from_json(str(tmp_path / "state.json"))
    assert state.best_global_step == best


def scripted(*values: float) -> Any:
    given = iter(values)
    return lambda model: {"macro_f1": next(given)}


def test_the_adapter_kept_is_that_of_the_best_step_though_others_came_later(tiny_llama, tmp_path):
    taught, weights = Taught(tiny_llama, make_corpus(tiny_llama, tmp_path / "corpus"), tmp_path / "work"), Weights()
    trainer = taught.trainer(scripted(0.1, 0.6, 0.2, 0.3, 0.5), weights)
    trainer.train()
    assert trainer.state.best_global_step == 8
    assert equal(trainable(taught.model), weights.behind[8])
    assert not equal(weights.behind[8], weights.behind[20])


def test_a_metric_that_does_not_move_leaves_the_choice_to_the_loss(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    taught = Taught(tiny_llama, corpus, tmp_path, eval_steps=1, max_steps=3, learning_rate=0.5, warmup_steps=0.0)
    trainer = taught.trainer(lambda model: {"macro_f1": 0.5})
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in list_validations(trainer.state)}
    assert trainer.state.best_global_step == min(losses, key=lambda step: losses[step]) < max(losses)


# The end


@pytest.mark.parametrize(("patience", "last_step"), [(1, 3), (2, 6), (3, 7), (None, 10)])
def test_it_stops_after_as_many_validations_without_a_better_one(tiny_llama, tmp_path, patience, last_step):
    changes = {"early_stopping_patience": patience, "eval_steps": 1, "num_train_epochs": 1}
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    taught = Taught(tiny_llama, corpus, tmp_path / "work", **changes)
    trainer = taught.trainer(scripted(0.1, 0.6, 0.2, 0.7, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3))
    trainer.train()
    assert trainer.state.global_step == last_step
    assert has_stopped_early(trainer.state, patience) == (patience is not None)
    assert trainer.state.best_global_step == (2 if patience == 1 else 4)

    again = Taught(tiny_llama, corpus, tmp_path / "work", **changes)
    resumed = again.trainer(scripted())
    resumed.train(resume_from_checkpoint=find_last_checkpoint(tmp_path / "work"))
    assert resumed.state.global_step == last_step, "killed behind its last checkpoint it takes no more steps"
    assert equal(trainable(again.model), trainable(taught.model))


def test_a_run_killed_behind_its_last_step_takes_no_step_more(tiny_llama, tmp_path):
    """Where max_steps end it within an epoch."""
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    taught, again = (Taught(tiny_llama, corpus, tmp_path / "work", max_steps=13) for _ in range(2))
    taught.trainer().train()
    resumed = again.trainer()
    resumed.train(resume_from_checkpoint=find_last_checkpoint(tmp_path / "work"))
    assert resumed.state.global_step == 13
    assert equal(trainable(again.model), trainable(taught.model))


@pytest.mark.slow
def test_a_killed_run_stops_at_the_same_step_with_the_same_bytes(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    patient = {
        "early_stopping_patience": 2,
        "num_train_epochs": 10,
        "learning_rate": 0.03,
        "lr_scheduler_type": "constant",
    }
    assert train(tiny_llama, corpus, calm, calm / "work", **patient).returncode == 0
    command = train_command(tiny_llama, corpus, killed, killed / "work", **patient)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(killed.glob("work/*/checkpoint-8/complete.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = train(tiny_llama, corpus, killed, killed / "work", **patient)
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    facts, expected = (read_json(out / "training.json") for out in (killed, calm))
    assert facts["stopped_early"] is True
    assert facts["steps"] == facts["best_step"] + 8 < 100
    for name in ("steps", "best_step", "best_value", "best_validation_loss", "curve"):
        assert facts[name] == expected[name], name
    assert adapter_hash(killed) == adapter_hash(calm)


def test_a_loss_that_is_no_number_stops_it_at_the_first_validation(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    done = train(tiny_llama, corpus, tmp_path / "out", tmp_path / "work", learning_rate=1e30, warmup_steps=0.0)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: the loss is not a finite number; lower finetune.learning_rate"
    assert not list(tmp_path.glob("work/*/checkpoint-*"))


# LoRA+


class Rates(TrainerCallback):
    """At each step the learning rate of each trainable weight, by name."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, float]] = {}
        self.groups: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        names = {id(part): name for name, part in given["model"].named_parameters()}
        self.groups = given["optimizer"].param_groups
        rates = [(names[id(part)], group["lr"]) for group in self.groups for part in group["params"]]
        assert len(rates) == len(dict(rates)), "no weight is in two groups"
        self.by_step[state.global_step] = dict(rates)


def test_loraplus_gives_the_b_matrices_their_own_learning_rate_over_a_resume_too(tiny_model, corpus, tmp_path):
    changes = {"method": "loraplus", "loraplus_lr_ratio": 8.0, "weight_decay": 0.1, "adam_beta1": 0.8, "max_steps": 8}
    taught, weights, rates = Taught(tiny_model, corpus, tmp_path / "calm", **changes), Weights(), Rates()
    taught.trainer(None, weights, rates).train()
    again, after, resumed = Taught(tiny_model, corpus, tmp_path / "resumed", **changes), Weights(), Rates()
    shutil.copytree(tmp_path / "calm" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    again.trainer(None, after, resumed).train(resume_from_checkpoint=find_last_checkpoint(tmp_path / "resumed"))
    assert list(resumed.by_step) == [4, 5, 6, 7]
    assert resumed.by_step == {step: found for step, found in rates.by_step.items() if step >= 4}
    assert equal(after.behind[8], weights.behind[8])
    for found in rates.by_step.values():
        assert found.keys() == trainable(taught.model).keys()
        base = next(rate for name, rate in found.items() if "lora_A" in name)
        for name, rate in found.items():
            assert rate == pytest.approx(base * (8.0 if "lora_B" in name else 1.0)), name
    assert len({found[name] for found in rates.by_step.values() for name in found}) > 8, "the schedule moves them"
    for group in rates.groups:
        assert (group["weight_decay"], group["betas"]) == (0.1, (0.8, 0.999))
    assert len(rates.groups) == 2
