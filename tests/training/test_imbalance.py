"""Classes of unequal size: weights in the loss, or rows that are drawn more often."""

from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from transformers import TrainerCallback

from lib.core.files import read_json, read_jsonl, write_jsonl
from lib.models.loading import load_model
from lib.training import batching, packing
from lib.training.callbacks import find_last_checkpoint
from support.trainer import Taught, Weights, equal
from support.training import LABELS, adapter_hash, make_corpus, train

ROWS = {"joy": 20, "joyful": 12, "sadness": 5}


def uneven_corpus(base: Path, folder: Path) -> Path:
    """`make_corpus` with as many training rows of each class as `ROWS` says."""
    make_corpus(base, folder, rows=3 * max(ROWS.values()))
    left = Counter(ROWS)
    kept = []
    for row in read_jsonl(folder / "train.jsonl"):
        if left[row["label"]]:
            left[row["label"]] -= 1
            kept.append(row)
    write_jsonl(folder / "train.jsonl", list(kept))
    return folder


@pytest.fixture(scope="module")
def uneven(tiny_model, tmp_path_factory) -> Path:
    return uneven_corpus(tiny_model, tmp_path_factory.mktemp("uneven"))


# Weights


def test_weights_are_scikit_learns_balanced_ones():
    labels = [label for label, count in ROWS.items() for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(labels))
    assert batching.compute_class_weights(labels) == pytest.approx(dict(zip(LABELS, expected, strict=True)))


def gradients(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    labels, _, weights = batch.pop("labels"), batch.pop("real_tokens"), batch.pop("weights", None)
    model.zero_grad()
    batching.compute_completion_loss(model(**batch), labels, weights=weights).backward()
    return torch.cat([part.grad.flatten() for part in model.parameters() if part.requires_grad])


@pytest.mark.parametrize("collate", [batching.Collator(pad_id=2), packing.PackingCollator()], ids=["padded", "packed"])
def test_a_weight_of_two_is_a_row_that_is_there_twice(tiny_model, uneven, tmp_path, collate):
    """Classes 1 : 2, so the rows of the smaller weigh twice as much; answers of different lengths."""
    taught = Taught(tiny_model, uneven, tmp_path)
    model = load_model(tiny_model)
    assert packing.can_pack(model, taught.encoded["train"], pad_id=2)
    if isinstance(collate, batching.Collator):
        model.set_attn_implementation("sdpa")
    by_class = {label: [] for label in LABELS}
    for row, example in zip(taught.rows["train"], taught.encoded["train"], strict=True):
        by_class[row["label"]].append(example)
    few, many = by_class["sadness"][:2], by_class["joyful"][:4]
    weighted = batching.weight_examples([*few, *many], ["few"] * 2 + ["many"] * 4)
    found = gradients(model, collate(weighted))
    repeated = gradients(model, collate([*few, *few, *many]))
    assert torch.allclose(found, repeated, atol=1e-5, rtol=1e-4)
    assert (found - repeated).norm() < 1e-5 * repeated.norm()
    plain = gradients(model, collate([*few, *many]))
    assert (found - plain).norm() > 1e-2 * repeated.norm(), "the weights do something"


class FirstGradient(TrainerCallback):
    found: torch.Tensor

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.found = torch.cat([part.grad.flatten() for part in given["model"].parameters() if part.requires_grad])


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_weighted_gradients_do_not_depend_on_accumulation(tiny_llama, tmp_path, monkeypatch, packed):
    """The divisor is the sum of the weights in the whole step: classes differ from batch to batch."""
    if not packed:
        monkeypatch.setattr("lib.training.trainer.can_pack", lambda *_: False)
    corpus = uneven_corpus(tiny_llama, tmp_path / "corpus")
    found = []
    for size, accumulated in ((8, 1), (2, 4), (1, 8)):
        taught = Taught(
            *(tiny_llama, corpus, tmp_path / str(size)),
            **{"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated},
            **{"class_balance": "weight", "max_steps": 1, "max_grad_norm": 1e9, "group_by_length": False},
        )
        watch = FirstGradient()
        trainer = taught.trainer(None, watch)
        assert isinstance(trainer.data_collator, packing.PackingCollator) == packed
        trainer.train()
        found.append(watch.found)
    assert found[0].norm() > 1e-3
    for accumulated in found[1:]:
        assert (accumulated - found[0]).norm() < 1e-5 * found[0].norm()


def test_the_validation_loss_is_not_weighted(tiny_llama, tmp_path):
    corpus = uneven_corpus(tiny_llama, tmp_path / "corpus")
    losses = [
        Taught(tiny_llama, corpus, tmp_path / balance, class_balance=balance).trainer().evaluate()["eval_loss"]
        for balance in ("none", "weight", "oversample")
    ]
    assert len(set(losses)) == 1


# Rows drawn more often


@pytest.mark.parametrize("lengths", [None, [number % 7 + 1 for number in range(37)]], ids=["any order", "by length"])
def test_in_an_epoch_each_class_comes_as_often_as_the_largest(lengths):
    classes = [label for label, count in ROWS.items() for _ in range(count)]
    order = batching.EpochOrder(37, seed=1, batch=4, lengths=lengths, classes=classes)
    epochs = []
    for epoch in range(2):
        order.set_epoch(epoch)
        drawn = list(order)
        assert list(order) == drawn, "it depends on seed and epoch only"
        assert len(drawn) == len(order) == 60
        assert Counter(classes[row] for row in drawn) == dict.fromkeys(ROWS, 20)
        times = Counter(drawn)
        for row, label in enumerate(classes):
            assert times[row] - 20 // ROWS[label] in ((0, 1) if 20 % ROWS[label] else (0,))
        epochs.append(times)
    assert epochs[0] != epochs[1], "which rows come once more is drawn again"


def test_without_classes_the_order_is_the_plain_permutation():
    order = batching.EpochOrder(11, seed=3, batch=2)
    order.set_epoch(2)
    assert list(order) == torch.randperm(11, generator=torch.Generator().manual_seed(3 * 1_000_003 + 2)).tolist()


def test_an_oversampled_run_resumes_to_the_same_weights(tiny_llama, tmp_path):
    corpus, changes = uneven_corpus(tiny_llama, tmp_path / "corpus"), {"class_balance": "oversample", "eval_steps": 16}
    taught, weights = Taught(tiny_llama, corpus, tmp_path / "work", **changes), Weights()
    taught.trainer(None, weights).train()
    assert max(weights.behind) == 2 * ceil(60 / 4)
    (tmp_path / "work" / "checkpoint-30" / "complete.json").unlink()  # as if cut short in the second epoch
    again, after = Taught(tiny_llama, corpus, tmp_path / "work", **changes), Weights()
    again.trainer(None, after).train(resume_from_checkpoint=find_last_checkpoint(tmp_path / "work"))
    assert min(after.behind) == 17
    assert equal(after.behind[30], weights.behind[30])


# Whole runs


@pytest.mark.slow
def test_a_run_says_what_made_up_for_the_sizes(tiny_llama, tmp_path):
    corpus, facts, hashes = uneven_corpus(tiny_llama, tmp_path / "corpus"), {}, set()
    for balance in ("none", "weight", "oversample"):
        out = tmp_path / balance
        done = train(tiny_llama, corpus, out, out / "work", class_balance=balance, num_train_epochs=1)
        assert done.returncode == 0, done.stderr
        facts[balance] = read_json(out / "training.json")
        hashes.add(adapter_hash(out))
    assert len(hashes) == 3
    assert facts["none"]["class_balance"] is None
    weights = {label: pytest.approx(37 / 3 / count) for label, count in ROWS.items()}
    assert facts["weight"]["class_balance"] == {"method": "weight", "rows": ROWS, "weights": weights}
    draws = dict.fromkeys(ROWS, 20)
    assert facts["oversample"]["class_balance"] == {"method": "oversample", "rows": ROWS, "draws_per_epoch": draws}
    assert [facts[balance]["steps"] for balance in facts] == [10, 10, 15]
    assert {each["sequences"] for each in facts.values()} == {37}
