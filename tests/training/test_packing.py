"""Packed rows: the losses and gradients of rows alone, for less work."""

import random
import time

import pytest
import torch
from models.families import FAMILIES, write_description
from peft import LoraConfig, get_peft_model

from lib.data.tokenizer import find_shared_prefix
from lib.models.loading import load_model
from lib.training import batching, packing
from lib.training.fused_lora import fuse_lora

SHARED = [11, 12, 13, 14]
# A row that others begin with, rows of all lengths, two equal ones.
ROWS = [[*SHARED, 20], [*SHARED, 20, 21, 22], [*SHARED, 30, 31], [*SHARED, 40, 41, 42, 43, 44, 2], [*SHARED, 30, 31]]
LONG = [[*range(50, 63), *row] for row in ROWS]  # the beginning fills more than one line of the table
SHORTEST = [[11, 12], [11, 13, 14]]
PADDED = {"gemma2", "gpt_oss", "lfm2", "granite4_hybrid", "qwen35", "nemotron"}  # families whose rows are not packed
APART = [[*row[::-1]] for row in ROWS]


def examples_of(rows, loss):
    """Each row with its last token supervised, or all but the first."""
    return [
        {
            "input_ids": row,
            "labels": [
                batching.IGNORED,
                *(row[1:] if loss == "all" else [batching.IGNORED] * (len(row) - 2) + row[-1:]),
            ],
        }
        for row in rows
    ]


def adapt_model(folder):
    torch.manual_seed(0)
    model = get_peft_model(load_model(folder), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # it starts at zero, where A has no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def backward(model, batch):
    labels, _ = batch.pop("labels"), batch.pop("real_tokens")
    loss = batching.compute_completion_loss(model(**batch), labels, num_items_in_batch=1)
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.named_parameters() if part.requires_grad}


@pytest.mark.parametrize("short", [0, packing.SHORT], ids=["kernel", "products"])
@pytest.mark.parametrize("loss", ["completion", "all"])
@pytest.mark.parametrize(
    "rows", [ROWS, LONG, APART, ROWS[:1], SHORTEST], ids=["shared", "much", "apart", "one", "shortest"]
)
def test_loss_and_gradients_are_those_of_padded_rows(tiny_model, rows, loss, short, monkeypatch):
    monkeypatch.setattr(packing, "SHORT", short)
    examples = examples_of(rows, loss)
    expected, gradients = backward(adapt_model(tiny_model), batching.Collator(pad_id=2)(examples))
    model = adapt_model(tiny_model)
    assert packing.can_pack(model.base_model.model, examples, pad_id=2)
    found, packed = backward(model, packing.PackingCollator()(examples))
    assert found == pytest.approx(float(expected), rel=1e-6)
    for name, gradient in gradients.items():
        close = 2e-6 * max(1.0, float(gradient.abs().max()))  # sums in another order round with their largest part
        assert torch.allclose(packed[name], gradient, atol=close, rtol=1e-4), name


def test_another_row_changes_nothing(tiny_model):
    model = load_model(tiny_model)
    model.set_attn_implementation(packing.ATTENTION)

    def logits(rows):
        batch = packing.PackingCollator()(examples_of(rows, "completion"))
        batch.pop("labels"), batch.pop("real_tokens")
        with torch.inference_mode():
            return model(**batch).logits[0, :-1]

    before, after = logits(ROWS), logits([*ROWS[:2], [*SHARED, 50, 51], *ROWS[3:]])
    assert torch.equal(before[[0, 1, 3, 4]], after[[0, 1, 3, 4]])
    assert not torch.allclose(before[2], after[2])


def test_what_rows_share_is_computed_once():
    batch = packing.PackingCollator()(examples_of(ROWS, "completion"))
    shared = len(SHARED) - 1  # the shortest row keeps a token of its own before its last, which is left off
    assert batch["input_ids"].shape == (1, shared + sum(len(row) - 1 - shared for row in ROWS))
    assert batch["real_tokens"] == sum(map(len, ROWS))
    assert batch["labels"].tolist() == [[batching.IGNORED, *(row[-1] for row in ROWS)]]


def draw_examples(generator, rows, longest, shared):
    beginning = [generator.randrange(3) for _ in range(shared)]
    examples = []
    for _ in range(rows):
        ids = beginning + [generator.randrange(3) for _ in range(generator.randint(2, longest))]
        labels = [id_ if generator.random() < 0.4 else batching.IGNORED for id_ in ids]
        examples.append({"input_ids": ids, "labels": [batching.IGNORED, *labels[1:-1], ids[-1]]})
    return [{**example, "weight": generator.random()} for example in examples]


def describe_tokens(examples):
    """Row, place and id of each packed token, one by one; of the shared ones the row is None."""
    rows = [example["input_ids"][:-1] for example in examples]
    shared = find_shared_prefix(rows) if len(rows) > 1 else 0
    own = [(number, place, ids[place]) for number, ids in enumerate(rows) for place in range(shared, len(ids))]
    return [(None, place, rows[0][place]) for place in range(shared)] + own


def sees(query, key, window):
    is_before = query[1] - (window or 1000) < key[1] <= query[1]
    return is_before and key[0] in (None, query[0])


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_is_what_its_tokens_say_one_by_one(seed):
    generator = random.Random(seed)
    examples = draw_examples(generator, generator.randint(1, 6), generator.choice([3, 20]), seed % 4 * 5)
    batch, tokens = packing.PackingCollator()(examples), describe_tokens(examples)
    layout = batch["layout"]
    assert batch["input_ids"].tolist() == [[id_ for _, _, id_ in tokens]]
    assert batch["position_ids"].tolist() == [[place for _, place, _ in tokens]]
    at = {(row, place): number for number, (row, place, _) in enumerate(tokens)}
    targets = [
        (at.get((number, place - 1), place - 1), label, example["weight"])
        for number, example in enumerate(examples)
        for place, label in enumerate(example["labels"])
        if label != batching.IGNORED
    ]
    predictors, labels, weights = map(list, zip(*targets, strict=True))
    assert batch["labels"].tolist() == [[batching.IGNORED, *labels]]
    assert batch["weights"].tolist() == [pytest.approx([0.0, *weights])]
    assert batch["logits_to_keep"].tolist() == [*predictors, len(tokens) - 1]
    for window in (None, 1, 4):
        lines, steps = packing.build_mask(layout, window).shape[:2]
        masks = packing.build_mask(layout, window).flatten(0, 1)
        for number, token in enumerate(tokens):
            place = int(layout["places"][number])
            assert layout["queries"].flatten()[place] == number
            seen = layout["keys"][place // steps][masks[place]].tolist()
            assert seen == [key for key, other in enumerate(tokens) if sees(token, other, window)]
        assert len(set(layout["places"].tolist())) == len(tokens) <= lines * steps


def test_what_a_batch_moves_to_a_gpu_grows_with_its_tokens():
    """The mask is the square of that, and where nothing is shared no kernel needs it."""
    examples = draw_examples(random.Random(0), 4, 2000, 0)
    batch = packing.PackingCollator()(examples)
    tensors = [part for part in [*batch.values(), *batch["layout"].values()] if isinstance(part, torch.Tensor)]
    assert sum(part.nbytes for part in tensors) < 100 * sum(len(example["input_ids"]) for example in examples)


def test_packing_takes_about_as_long_as_padding():
    """A GPU waits for it."""
    examples = draw_examples(random.Random(0), 4, 4000, 100)

    def measure(collator):
        seconds = []
        for _ in range(8):
            start = time.perf_counter()
            collator(examples)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert measure(packing.PackingCollator()) < 6 * measure(batching.Collator(pad_id=2))


@pytest.mark.parametrize(
    ("rows", "short", "built"), [(APART, 0, []), (ROWS, 0, [None]), (APART, packing.SHORT, [None])]
)
def test_all_layers_share_a_mask_and_it_is_built_only_where_it_is_needed(tiny_llama, rows, short, built, monkeypatch):
    monkeypatch.setattr(packing, "SHORT", short)
    model, layouts = load_model(tiny_llama), []
    model.set_attn_implementation(packing.ATTENTION)
    batch = packing.PackingCollator()(examples_of(rows, "completion"))
    batch.pop("labels"), batch.pop("real_tokens")
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _module, _inputs, options: layouts.append(options["layout"]), with_kwargs=True
        )
    model(**batch)
    assert [*layouts[0].get("masks", {})] == built
    assert len(layouts) > 1
    assert all(layout is layouts[0] for layout in layouts)


def test_a_model_that_was_refused_once_can_be_packed_later(tiny_llama, monkeypatch):
    examples, model = examples_of(ROWS, "completion"), load_model(tiny_llama)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_packs", lambda *_, **__: False)
        patch.setattr(packing, "has_separate_rows", lambda _: True)
        assert not packing.can_pack(model, examples, pad_id=2)
    assert packing.can_pack(model, examples, pad_id=2)


def test_a_row_keeps_a_token_of_its_own():
    assert find_shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert find_shared_prefix([[1, 2, 3], [1]]) == 0
    assert find_shared_prefix([[1, 2, 3], []]) == 0


def test_fused_lora_computes_what_peft_does(tiny_model):
    examples = examples_of(ROWS, "all")
    expected, gradients = backward(adapt_model(tiny_model), batching.Collator(pad_id=2)(examples))
    model = adapt_model(tiny_model)
    assert fuse_lora(model) == sum("lora_A" in name for name, _ in model.named_parameters())
    found, fused = backward(model, batching.Collator(pad_id=2)(examples))
    assert found == pytest.approx(float(expected), rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(fused[name], gradient, atol=1e-6, rtol=1e-4), name


def test_fused_lora_in_bfloat16_is_as_close_to_float32_as_peft(tiny_llama):
    examples = examples_of(ROWS, "all")

    def gradients(dtype, fuse):
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        model = get_peft_model(load_model(tiny_llama, dtype), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        assert not fuse or fuse_lora(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = backward(model, batching.Collator(pad_id=2)(examples))[1]
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        return torch.cat([gradient.double().flatten() for gradient in found.values()])

    exact, theirs, ours = (
        gradients(*way) for way in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))
    )
    off = [float((found - exact).norm() / exact.norm()) for found in (theirs, ours)]
    assert off[1] < min(0.05, 1.5 * off[0])


@pytest.mark.parametrize("option", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_the_fused_arithmetic_does_not_know_is_left_to_peft(tiny_llama, option):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **option)
    assert fuse_lora(get_peft_model(load_model(tiny_llama), config)) == 0


def test_a_batch_without_supervision_is_refused():
    with pytest.raises(ValueError, match="supervised"):
        packing.PackingCollator()([{"input_ids": [1, 2], "labels": [batching.IGNORED] * 2}])


def test_a_model_is_packed_only_where_its_loss_stays_the_same(tiny_phi3):
    examples = examples_of(ROWS, "completion")
    model = load_model(tiny_phi3)
    assert packing.can_pack(model, examples, pad_id=2)
    assert model.config._attn_implementation == packing.ATTENTION


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_rows_see_the_row_before_is_trained_padded(tmp_path, dtype):
    """LFM2's convolution runs on from row to row; in bfloat16 the loss hardly shows it."""
    from transformers import AutoModelForCausalLM, Lfm2Config

    from lib.models.small_config import shrink_config

    config = shrink_config(Lfm2Config(architectures=["Lfm2ForCausalLM"], full_attn_idxs=[2], num_hidden_layers=3))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    assert not packing.can_pack(model, examples_of(ROWS, "completion"), pad_id=2)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_another_way_of_attention_is_trained_padded(tiny_phi3, monkeypatch):
    """See what the comparison is for: attention that computes something else is found out, not trained with."""
    monkeypatch.setattr(packing, "SHORT", 0)
    model = load_model(tiny_phi3)
    right = packing.sdpa_attention_forward
    monkeypatch.setattr(
        packing,
        "sdpa_attention_forward",
        lambda module, query, *rest, **options: right(module, query * 2, *rest, **options),
    )
    assert not packing.can_pack(model, examples_of(ROWS, "completion"), pad_id=2)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_of_a_kind_of_model_are_packed_where_each_is_computed_as_if_alone(family, tmp_path):
    """States run on from row to row; scores are capped in Gemma 2, and GPT-OSS has sinks, which packing does not know."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(write_description(family, tmp_path / "base")).get_text_config()
    assert packing.has_separate_rows(config) == (family.name not in PADDED)
