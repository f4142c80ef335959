"""What training promises: the right loss on the right tokens, seeds, resume to the same bytes, exact merge."""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from lib.core.checksums import write_checksums
from lib.core.cli import UserError
from lib.core.files import read_json, read_jsonl, write_json
from lib.data.tokenizer import load_tokenizer
from lib.models.loading import load_adapter, load_model
from lib.training import batching
from lib.training.callbacks import find_last_checkpoint
from support.training import FINETUNE, adapter_hash, make_corpus, train, train_command


@pytest.fixture(scope="module")
def corpus(tiny_model, tmp_path_factory) -> Path:
    return make_corpus(tiny_model, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(tiny_model, corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    done = train(tiny_model, corpus, out, out / "work")
    assert done.returncode == 0, done.stderr
    return out


def encoded(base: Path, corpus: Path, loss: str = "completion") -> list[batching.Example]:
    rows = list(read_jsonl(corpus / "train.jsonl"))
    return batching.encode_rows(load_tokenizer(base), rows, loss=loss, max_length=512)


# What is learned


def test_a_validation_scores_at_most_so_many_rows_and_the_same_for_a_seed():
    from train_adapter import EVAL_ROWS, sample_validation

    rows = [{"id": str(number)} for number in range(EVAL_ROWS + 500)]
    assert sample_validation(rows[:EVAL_ROWS], {}, 0) == rows[:EVAL_ROWS]
    assert len(sample_validation(rows, {}, 0)) == EVAL_ROWS
    some = sample_validation(rows, {"eval_rows": 40}, 0)
    assert some == sorted(some, key=lambda row: int(row["id"]))
    assert len({row["id"] for row in some}) == 40
    assert some == sample_validation(rows, {"eval_rows": 40}, 0) != sample_validation(rows, {"eval_rows": 40}, 1)


def test_only_the_answer_and_its_end_token_are_supervised(tiny_model, corpus):
    tokenizer = load_tokenizer(tiny_model)
    for row, example in zip(read_jsonl(corpus / "train.jsonl"), encoded(tiny_model, corpus), strict=True):
        learned = [label for label in example["labels"] if label != batching.IGNORED]
        assert tokenizer.decode(learned) == row["completion"]
        assert learned[-1] in tokenizer.end_ids
        assert sum(id_ in tokenizer.end_ids for id_ in learned) == 1


def test_padding_does_not_mask_the_end_token_though_pad_equals_end(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path)
    examples = encoded(tiny_llama, corpus)
    batch = batching.Collator(pad_id=2)(examples[:7])
    assert (batch["labels"] == 2).sum() == 7, "each row supervises its end token once"
    assert (batch["labels"][batch["attention_mask"] == 0] == batching.IGNORED).all()


def test_a_batch_without_supervision_is_refused():
    with pytest.raises(ValueError, match="supervised"):
        batching.Collator(pad_id=0)([{"input_ids": [1, 2], "labels": [batching.IGNORED] * 2}])


def loss_of(model, examples) -> torch.Tensor:
    batch = batching.Collator(pad_id=2)(examples)
    labels, _ = batch.pop("labels"), batch.pop("real_tokens")
    return batching.compute_completion_loss(model(**batch), labels, num_items_in_batch=1)


@pytest.mark.parametrize("loss", ["completion", "all"])
def test_rows_in_a_batch_do_not_see_each_other(tiny_model, corpus, loss):
    """The loss of a padded batch is the sum of the losses of its rows alone, and the library's own loss."""
    model, examples = load_model(tiny_model), encoded(tiny_model, corpus, loss)[:6]
    with torch.inference_mode():
        together = loss_of(model, examples)
        alone = sum(loss_of(model, [example]) for example in examples)
        library = sum(
            model(
                input_ids=torch.tensor([example["input_ids"]]),
                labels=torch.tensor([example["labels"]]),
                num_items_in_batch=torch.tensor(1),
            ).loss
            for example in examples
        )
    assert together == pytest.approx(float(alone), rel=1e-5)
    assert together == pytest.approx(float(library), rel=1e-5)


def test_gradients_do_not_depend_on_accumulation(tiny_llama, tmp_path):
    examples = encoded(tiny_llama, make_corpus(tiny_llama, tmp_path))[:8]
    items = sum(label != batching.IGNORED for example in examples for label in example["labels"])
    gradients = []
    for size in (8, 1):
        model = load_model(tiny_llama)
        for start in range(0, 8, size):
            (loss_of(model, examples[start : start + size]) / items).backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-7)


def test_join_keeps_every_token_and_trains_on_all(tiny_model, corpus):
    examples = encoded(tiny_model, corpus, "all")
    blocks = batching.join_rows(examples, 64)
    assert [i for b in blocks for i in b["input_ids"]] == [i for e in examples for i in e["input_ids"]]
    assert all(block["labels"][1:] == block["input_ids"][1:] for block in blocks)
    assert {len(block["input_ids"]) for block in blocks[:-1]} == {64}


# The order of the rows


@pytest.mark.parametrize("lengths", [None, [number % 13 + 1 for number in range(1003)]])
def test_an_epoch_holds_every_row_once_and_depends_on_seed_and_epoch_only(lengths):
    order = batching.EpochOrder(1003, seed=1, batch=8, lengths=lengths)
    first = list(order)
    torch.rand(5)
    assert sorted(first) == list(range(1003))
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first


def test_grouping_by_length_wastes_little_padding():
    lengths = [5 + (number * 7919) % 60 for number in range(1600)]
    order = list(batching.EpochOrder(1600, seed=0, batch=16, lengths=lengths))
    padded = sum(16 * max(lengths[row] for row in order[start : start + 16]) for start in range(0, 1600, 16))
    assert padded < 1.1 * sum(lengths)
    assert lengths[order[0]] == max(lengths), "memory runs out at the first step or never"


# Runs


def test_training_lowers_the_validation_loss_and_keeps_the_best(trained):
    facts = read_json(trained / "training.json")
    losses, scores = (
        {point["step"]: point[name] for point in facts["curve"] if name in point}
        for name in ("eval_loss", "eval_macro_f1")
    )
    assert facts["steps"] == 20
    assert list(losses) == list(scores) == [4, 8, 12, 16, 20]
    assert facts["best_step"] == max(losses, key=lambda step: (scores[step], -losses[step]))
    assert facts["best_validation_loss"] == losses[facts["best_step"]] < losses[4]
    assert (facts["best_by"], facts["best_value"]) == ("macro_f1", max(scores.values()))
    assert facts["stopped_early"] is False
    assert facts["real_tokens"] > facts["supervised_tokens"] > 0


def test_all_linear_adapts_every_projection_and_not_the_head(trained, tiny_model):
    config = read_json(trained / "adapter" / "adapter_config.json")
    phi3 = read_json(tiny_model / "config.json")["model_type"] == "phi3"
    expected = (
        ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
        if phi3
        else ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    )
    assert sorted({name.rpartition(".")[2] for name in config["target_modules"]}) == expected
    assert config["base_model_name_or_path"] is None
    linear = [part for name, part in load_model(tiny_model).named_modules() if name.rpartition(".")[2] in expected]
    weights = sum(FINETUNE["r"] * (part.in_features + part.out_features) for part in linear)
    assert read_json(trained / "training.json")["trainable_parameters"] == weights


def test_the_same_seed_gives_the_same_bytes_in_another_process(tiny_model, corpus, trained, tmp_path):
    assert train(tiny_model, corpus, tmp_path, tmp_path / "work").returncode == 0
    assert adapter_hash(tmp_path) == adapter_hash(trained)
    for name in ("adapter.manifest.json", "adapter/adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_killed_run_resumes_to_the_same_bytes(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert train(tiny_llama, corpus, calm, calm / "work").returncode == 0
    process = subprocess.Popen(train_command(tiny_llama, corpus, killed, killed / "work"), stderr=subprocess.DEVNULL)
    while not list(killed.glob("work/*/checkpoint-8/complete.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "adapter").exists(), "nothing half-written is published"
    done = train(tiny_llama, corpus, killed, killed / "work")
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    assert adapter_hash(killed) == adapter_hash(calm)
    again = train(tiny_llama, corpus, killed, killed / "work")
    assert "already trained" in again.stderr
    assert adapter_hash(killed) == adapter_hash(calm)


def test_a_checkpoint_cut_short_is_not_believed(tmp_path):
    for step in (4, 8):
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", {"best_global_step": 4})
    write_checksums(tmp_path / "checkpoint-4")
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-8").exists()


def test_another_setting_never_picks_up_this_progress(tiny_llama, tmp_path):
    corpus = make_corpus(tiny_llama, tmp_path / "corpus")
    work = tmp_path / "work"
    assert train(tiny_llama, corpus, tmp_path / "a", work, num_train_epochs=1).returncode == 0
    assert train(tiny_llama, corpus, tmp_path / "b", work, num_train_epochs=1, learning_rate=2e-2).returncode == 0
    assert len(list(work.iterdir())) == 2
    assert adapter_hash(tmp_path / "a") != adapter_hash(tmp_path / "b")


def test_an_unknown_target_module_is_named_with_what_the_model_has(tiny_phi3, tmp_path):
    corpus = make_corpus(tiny_phi3, tmp_path / "corpus")
    done = train(tiny_phi3, corpus, tmp_path, tmp_path / "work", target_modules=["q_proj"])
    assert done.returncode == 1
    assert "error: finetune.target_modules: the base model has no layer q_proj; it has " in done.stderr
    assert "qkv_proj" in done.stderr
    assert "Traceback" not in done.stderr


# The merge


def merge(base: Path, trained: Path, corpus: Path, out: Path) -> Path:
    import merge_adapter

    merge_adapter.main(
        Namespace(
            settings={"into": "original", "versions": {}},
            base=base,
            adapter=trained / "adapter",
            rows=corpus / "validation.jsonl",
            merged=out,
            threads=1,
        )
    )
    return out


@pytest.fixture(scope="module")
def merged(tiny_model, corpus, trained) -> Path:
    return merge(tiny_model, trained, corpus, trained / "merged")


def test_merged_logits_equal_base_with_adapter(tiny_model, corpus, trained, merged):
    tokenizer = load_tokenizer(tiny_model)
    ids = torch.tensor([tokenizer.encode(next(read_jsonl(corpus / "train.jsonl"))["prompt"])])
    with torch.inference_mode():
        expected = load_adapter(load_model(tiny_model), trained / "adapter")(ids).logits
        assert (load_model(merged)(ids).logits - expected).abs().max() < 1e-4
        assert (load_model(tiny_model)(ids).logits - expected).abs().max() > 1e-3, "the adapter does something"


def test_merge_keeps_ties_generation_config_and_tokenizer(tiny_model, merged):
    before, after = load_model(tiny_model), load_model(merged)
    assert before.config.tie_word_embeddings == after.config.tie_word_embeddings
    tied = after.get_output_embeddings().weight.data_ptr() == after.get_input_embeddings().weight.data_ptr()
    assert tied == after.config.tie_word_embeddings
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (tiny_model / name).read_bytes()


def test_a_wrong_scale_is_caught_before_anything_is_published(tiny_model, corpus, trained, tmp_path, monkeypatch):
    """Negative control: the parity check must fail when alpha is doubled behind its back."""
    from lib.models import merging

    scale = merging.compute_adapter_scale
    monkeypatch.setattr(merging, "compute_adapter_scale", lambda config: 2 * scale(config))
    with pytest.raises(UserError, match="differs from base and adapter"):
        merge(tiny_model, trained, corpus, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_small_updates_survive_and_are_rounded_once():
    from lib.models.merging import add_low_rank

    weight = torch.linspace(0.5, 1.0, 64).reshape(8, 8)
    a, b = torch.full((1, 8), 2.0**-5), torch.full((8, 1), 2.0**-5)
    assert torch.equal(add_low_rank(weight, a, b, 1.0), weight + 2.0**-10)
    half = weight.bfloat16()
    exact = (half.double() + 3 * 2.0**-10).bfloat16()
    assert torch.equal(add_low_rank(half, a, b, 3.0).bfloat16(), exact)


def test_train_dies_with_its_parent(tiny_llama, tmp_path):
    """Snakemake killed: the training must not go on behind its back."""
    corpus = make_corpus(tiny_llama, tmp_path / "corpus", rows=400)
    command = train_command(tiny_llama, corpus, tmp_path, tmp_path / "work", num_train_epochs=50)
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *command],
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("work/*/checkpoint-*/complete.json")):
        assert parent.poll() is None
        time.sleep(0.05)
    child = int(subprocess.check_output(["pgrep", "-P", str(parent.pid)], text=True))
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the training outlived its parent")
