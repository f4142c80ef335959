"""Correctness traps that no other test file is about; tests/traps.md lists all of them with where each is caught.

Most are tried on a model that has really learned: which word stands in a text decides its label, and one
label begins another.
"""

import argparse
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lib.core.cli import UserError
from lib.core.files import read_json, read_jsonl, write_json, write_jsonl
from lib.data.templates import compile_template, render_completion, render_prompt
from lib.data.tokenizer import load_tokenizer
from lib.evaluation.answers import compute_label_shares
from lib.evaluation.metrics import measure_quality
from lib.evaluation.scoring import encode_choices
from lib.models.loading import load_adapter, load_model
from lib.onnx.graph import Graph, dequantize
from lib.provenance.manifests import build_manifest_path, write_manifest
from lib.training import batching
from support.learnable_task import LABELS, WORDS, with_louder_logits
from support.onnx_samples import build, write_corpus
from support.training import FINETUNE

EPOCHS = 10
ROWS = {"train": 46, "validation": 21}  # neither is a multiple of a batch
EVALUATE = {"greedy_rows": 100, "batch_size": 4, "max_new_tokens": 8, "bootstrap_samples": 50}
SETTINGS = {"task": "classification", "seed": 0, "evaluate": EVALUATE, "versions": {}}


def learnable_corpus(base: Path, folder: Path) -> Path:
    """Rows of different lengths whose label follows from one word of theirs."""
    question = {"user": "Tone? {text}"}
    template = compile_template(question, load_tokenizer(base), task="classification", target="tone", labels=LABELS)
    for split, count in ROWS.items():
        rows = []
        for number in range(count):
            label = LABELS[number % 3]
            text = f"{number} the {WORDS[label]} {'so ' * (number % 5)}again"
            rows.append(
                {
                    "id": f"{split}{number}",
                    "prompt": render_prompt(template, {"text": text}),
                    "completion": render_completion(template, label),
                    "label": label,
                }
            )
        write_jsonl(folder / f"{split}.jsonl", rows)
    write_json(folder / "template.json", {**template, "max_length": 128, "truncation": "reject"})
    return folder


def train(base: Path, corpus: Path, out: Path, **changes: object) -> dict[str, Any]:
    """Run `train_adapter` in this process; returns what it says about the training."""
    import train_adapter

    train_adapter.main(
        argparse.Namespace(
            settings={**SETTINGS, "finetune": {**FINETUNE, "lora_dropout": 0.0, **changes}},
            template=corpus / "template.json",
            train=corpus / "train.jsonl",
            validation=corpus / "validation.jsonl",
            base=base,
            work=out / "work",
            mirror=None,
            adapter=out / "adapter",
            training=out / "training.json",
            threads=1,
            limit=None,
            trackers=[],
        )
    )
    return read_json(out / "training.json")


def merge(base: Path, adapter: Path, corpus: Path, out: Path) -> Path:
    import merge_adapter

    rows = {"rows": corpus / "validation.jsonl", "merged": out}
    merge_adapter.main(
        argparse.Namespace(base=base, adapter=adapter, settings={"into": "original", "versions": {}}, threads=1, **rows)
    )
    return out


class Learned:
    """A tiny model that was taught its corpus: base, corpus, adapter, merged checkpoint, int4 build."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base = with_louder_logits(base, folder / "base")
        self.corpus = learnable_corpus(base, folder / "corpus")
        self.facts = train(
            *(self.base, self.corpus, folder),
            **{"r": 8, "lora_alpha": 16, "num_train_epochs": EPOCHS, "learning_rate": 5e-3, "eval_steps": 24},
            gradient_accumulation_steps=2,
        )
        self.adapter = folder / "adapter"
        self.merged = merge(self.base, self.adapter, self.corpus, folder / "merged")
        self.int4 = build(self.merged, self.corpus / "validation.jsonl", folder / "int4")

    def rows(self, split: str = "validation") -> list[dict[str, Any]]:
        return list(read_jsonl(self.corpus / f"{split}.jsonl"))

    def scored(self, model: Any) -> list[dict[str, Any]]:
        """Predictions and free answers of a loaded PyTorch model on the validation rows."""
        from lib.evaluation import torch_scorer

        tokenizer, template = load_tokenizer(self.base), read_json(self.corpus / "template.json")
        predictions = torch_scorer.score_labels(model, tokenizer, template, self.rows(), 4)
        torch_scorer.add_answers(model, tokenizer, template, self.rows(), predictions, EVALUATE)
        return predictions

    def scored_onnx(self, folder: Path) -> list[dict[str, Any]]:
        import score_onnx

        from lib.onnx.runtime import load_onnx

        template = read_json(self.corpus / "template.json")
        tokenizer = load_tokenizer(self.base)
        return list(score_onnx.predict_labels(load_onnx(folder, 1), tokenizer, template, self.rows(), EVALUATE))


@pytest.fixture(scope="module")
def learned(tiny_phi3, tmp_path_factory) -> Learned:
    return Learned(tiny_phi3, tmp_path_factory.mktemp("learned"))


def measured(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    return measure_quality("classification", predictions, LABELS, seed=0, samples=50)


# What is learned


def test_a_taught_model_says_each_label_and_stops(learned):
    """End tokens (1), masks (7), free against constrained answers (33), labels of several tokens (34)."""
    for stage in (load_adapter(load_model(learned.base), learned.adapter), load_model(learned.merged)):
        found = measured(learned.scored(stage))
        assert found["quality"]["accuracy"] == 1
        assert found["quality"]["greedy_accuracy"] == found["quality"]["stop_rate"] == 1
        assert found["quality"]["invalid_rate"] == 0


def test_training_sees_every_row_in_every_epoch(learned):
    """A tail that is dropped (9), rows drawn twice (13): 46 rows fill no whole number of steps of 8."""
    examples = batching.encode_rows(
        load_tokenizer(learned.base), learned.rows("train"), loss="completion", max_length=512
    )
    assert learned.facts["sequences"] == len(examples) == ROWS["train"]
    assert learned.facts["real_tokens"] == EPOCHS * sum(len(example["input_ids"]) for example in examples)


def test_the_validation_loss_is_that_of_every_row_once(learned):
    """Rows that a sampler adds or drops (30), and that the adapter kept is the best one."""
    model = load_adapter(load_model(learned.base), learned.adapter)
    rows = batching.encode_rows(load_tokenizer(learned.base), learned.rows(), loss="completion", max_length=512)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            targets = torch.tensor(row["labels"][1:])
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            tokens += int((targets != batching.IGNORED).sum())
    assert learned.facts["best_validation_loss"] == pytest.approx(total / tokens, rel=1e-3)


def test_another_row_of_the_batch_changes_no_logits(tiny_model, tmp_path):
    """Rows that see each other (8): positions start again with each row."""
    rows = list(read_jsonl(learnable_corpus(tiny_model, tmp_path) / "train.jsonl"))
    rows[4]["prompt"] = rows[4]["prompt"].replace("again", "again and again and again")
    short, one, other = (
        batching.encode_rows(load_tokenizer(tiny_model), [row], loss="completion", max_length=512)[0]
        for row in (rows[0], rows[1], rows[4])
    )
    size, model, logits = len(short["input_ids"]), load_model(tiny_model), []
    for neighbors in ([one], [other], [other, one], []):
        batch = batching.Collator(pad_id=2)([short, *neighbors])
        assert batch["position_ids"][0][batch["attention_mask"][0] == 1].tolist() == list(range(size))
        with torch.inference_mode():
            kept = batch | {"logits_to_keep": size}
            kept.pop("labels")
            logits.append(model(**kept).logits[0])
    for changed in logits[1:]:
        assert (changed - logits[0]).abs().max() < 1e-5


def test_the_trainers_gradients_do_not_depend_on_accumulation(tiny_llama, tmp_path, monkeypatch):
    """The loss is divided by the tokens of the whole step (10), as the Trainer itself counts them."""
    from lib.training import trainer

    corpus, gradients = learnable_corpus(tiny_llama, tmp_path), []

    class Watch(trainer.Progress):
        def on_pre_optimizer_step(self, *_: Any, **given: Any) -> None:
            parts = [part.grad.flatten() for part in given["model"].parameters() if part.requires_grad]
            gradients.append(torch.cat(parts).clone())

    monkeypatch.setattr(trainer, "Progress", Watch)
    for size, accumulated in ((8, 1), (1, 8)):
        batch = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        train(tiny_llama, corpus, tmp_path / str(size), **batch, max_steps=1, max_grad_norm=1e9, group_by_length=False)
    whole, accumulated = gradients
    assert whole.abs().max() > 1e-4
    assert torch.allclose(whole, accumulated, rtol=1e-3, atol=1e-6)


def test_two_gpus_are_no_data_parallel(monkeypatch, tmp_path):
    """`nn.DataParallel` starts by itself where two GPUs are seen (31): averages wrong, and slower."""
    from lib.training.trainer import build_training_arguments

    for name, value in {"is_available": True, "device_count": 2, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    arguments = build_training_arguments({**FINETUNE, "max_steps": 1}, 0, tmp_path, torch.float32)
    assert arguments.device.type == "cuda", "the pretence works"
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == FINETUNE["per_device_train_batch_size"]


def test_phi3_mini_gets_an_adapter_on_each_projection():
    """Names that match little or nothing (14), on the real model's shape without its weights."""
    import train_adapter
    from transformers import Phi3Config, Phi3ForCausalLM

    from lib.training.adapter import build_lora_model

    config = Phi3Config(
        **{"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "pad_token_id": 32000},
    )
    with torch.device("meta"):
        model = Phi3ForCausalLM(config)
        assert sum(part.numel() for part in model.parameters()) == 3_821_079_552
        adapted = build_lora_model(model, {**FINETUNE, "r": 16})
    names = {name.partition(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    kinds = [name.rpartition(".")[2] for name in names]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], 32
    )
    assert train_adapter.count_trainable(adapted) == 1_572_864 * 16


# The merge


def peft_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as peft itself saves it, with random weights everywhere."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules="all-linear", **options)
    torch.manual_seed(1)
    model = get_peft_model(load_model(base), config)
    for name, part in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(part, std=0.1)
    model.save_pretrained(folder)
    write_manifest(folder, inputs={"base": build_manifest_path(base)}, settings={})
    return folder


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_merge_follows_pefts_own_scale(tiny_model, tmp_path, options):
    """alpha / r, or alpha / sqrt(r) for rsLoRA (15)."""
    corpus = learnable_corpus(tiny_model, tmp_path)
    adapter = peft_adapter(tiny_model, tmp_path / "adapter", **options)
    merged = load_model(merge(tiny_model, adapter, corpus, tmp_path / "merged"))
    ids = torch.tensor([load_tokenizer(tiny_model).encode(next(read_jsonl(corpus / "train.jsonl"))["prompt"])])
    with torch.inference_mode():
        expected = load_adapter(load_model(tiny_model), adapter)(ids).logits
        assert (merged(ids).logits - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (load_model(tiny_model)(ids).logits - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "which is not a low-rank matrix"),
        ({"alpha_pattern": {"o_proj": 48}}, "differs from base and adapter"),
    ],
)
def test_an_adapter_with_more_than_plain_pairs_is_not_merged_wrongly(tiny_phi3, tmp_path, options, message):
    """Whole layers, scales of single layers (15): refused, or caught by comparing logits."""
    corpus = learnable_corpus(tiny_phi3, tmp_path)
    adapter = peft_adapter(tiny_phi3, tmp_path / "adapter", **options)
    with pytest.raises(UserError, match=message):
        merge(tiny_phi3, adapter, corpus, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_merged_into_the_weights_it_was_trained_on_only(tiny_llama, tmp_path):
    """Trained on other weights of the same shape (17), as a quantized and a dequantized base are."""
    corpus = learnable_corpus(tiny_llama, tmp_path)
    adapter = peft_adapter(tiny_llama, tmp_path / "adapter")
    other = with_louder_logits(tiny_llama, tmp_path / "other")
    with pytest.raises(UserError, match="was trained on another base model"):
        merge(other, adapter, corpus, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# The prompt


def with_bos(base: Path, folder: Path) -> Path:
    """A copy whose tokenizer puts `<s>` before every text."""
    from tokenizers import Tokenizer, processors

    copy = Path(shutil.copytree(base, folder))
    backend = Tokenizer.from_file(str(copy / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(copy / "tokenizer.json"))
    write_manifest(copy, inputs={}, settings={})
    return copy


def test_bos_is_there_once_in_training_and_in_onnx_runtime(tiny_phi3, tmp_path):
    """Once in the corpus text, and added a second time by no tokenizer (3)."""
    import onnxruntime_genai as og

    base = with_bos(tiny_phi3, tmp_path / "base")
    rows = list(read_jsonl(learnable_corpus(base, tmp_path) / "train.jsonl"))
    onnx = build(base, tmp_path / "train.jsonl", tmp_path / "int4")
    shipped, theirs = load_tokenizer(onnx), og.Tokenizer(og.Model(str(onnx)))
    for row, example in zip(
        rows, batching.encode_rows(load_tokenizer(base), rows, loss="completion", max_length=512), strict=True
    ):
        assert example["input_ids"][0] == 1
        assert example["input_ids"].count(1) == 1
        text = row["prompt"] + row["completion"]
        assert shipped.encode(text) == theirs.encode(text).tolist() == example["input_ids"]


def test_a_label_that_joins_the_prompt_stops_the_scoring(tiny_phi3):
    """Every label behind every prompt, not the right one alone (4)."""
    tokenizer = load_tokenizer(tiny_phi3)
    word = max((word for word in tokenizer.backend.get_vocab() if word.isascii() and word.isalpha()), key=len)
    template: Any = {"labels": ["?", word[2:]], "target": "tone", "completion": [{"column": "tone"}]}
    encode_choices(tokenizer, template | {"labels": ["?"]}, [f"tone:\n{word[:2]}"])
    with pytest.raises(UserError, match="joins the end of the prompt"):
        encode_choices(tokenizer, template, [f"tone:\n{word[:2]}"])


SIGNS = [
    "a",
    "Z",
    "é",
    "ü",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "7",
    "42",
    ".",
    "'s",
    "{",
    "}",
    "%",
    "<",
    "|",
    "🙂",
    "👩‍👩‍👧",
]
SIGNS += ["日", "本", "ع", "ש", "न", "ि", "\u00a0", "\u200d", "\u2028", "\ufffd", "́", "_", "word", " the", "-"]

SENTENCE = [
    "the",
    "old",
    "dog",
    "never",
    "came",
    "home",
    "again",
    "and",
    "nobody",
    "had",
    "told",
    "him",
    "about",
    "bread",
    "or",
    "party",
]


def test_training_and_use_read_the_same_ids(tiny_model, tmp_path):
    """200 odd rows (5): from raw values, as `predict.py` asks, to the ids of training and of ONNX Runtime (6)."""
    import onnxruntime_genai as og
    import predict

    from support.data_stages import SPLITS, TEXT, kept_rows, render

    generator = random.Random(5)
    phrases = [f"{number}{''.join(generator.choices(SIGNS, k=12))}.".strip() for number in range(200)]
    kept = kept_rows(phrases)
    corpus = render(tmp_path, tiny_model, kept, TEXT)
    rows = {row["id"]: row for split in SPLITS for row in read_jsonl(corpus / f"{split}.jsonl")}
    onnx = build(tiny_model, corpus / "train.jsonl", tmp_path / "int4")
    tokenizer, theirs = load_tokenizer(onnx), og.Tokenizer(og.Model(str(onnx)))
    template = read_json(corpus / "template.json")
    for raw in kept:
        row = rows[raw["id"]]
        trained = batching.encode_rows(load_tokenizer(tiny_model), [row], loss="completion", max_length=512)[0]
        prompt = predict.render_fitting_prompt(predict.Input(raw["values"], "test"), raw["values"], template, tokenizer)
        asked = tokenizer.encode(prompt)
        assert asked == theirs.encode(prompt).tolist()
        assert asked == trained["input_ids"][: len(asked)]
        assert all(label == batching.IGNORED for label in trained["labels"][: len(asked)])
        answered = tokenizer.encode(prompt + render_completion(template, raw["target"]))
        assert answered == trained["input_ids"]


# The built model


def kl(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float:
    """Mean KL(before || after) of the label probabilities, in nats."""
    total = 0.0
    for one, other in zip(before, after, strict=True):
        old, new = compute_label_shares(one["log_probs"]), compute_label_shares(other["log_probs"])
        total += sum(old[label] * (np.log(old[label]) - np.log(new[label])) for label in LABELS)
    return total / len(before)


def test_int4_keeps_what_was_taught(learned):
    """A tune so light that int4 rounds it away (18): int4 must stay near the merged model, far from the base."""
    base, merged = (learned.scored(load_model(folder)) for folder in (learned.base, learned.merged))
    int4 = learned.scored_onnx(learned.int4)
    assert measured(base)["quality"]["accuracy"] < 0.7
    assert measured(int4)["quality"]["accuracy"] == measured(int4)["quality"]["stop_rate"] == 1
    assert kl(merged, int4) < 0.1 * kl(base, int4)


def test_answers_do_not_vary_though_the_base_model_samples(learned, tmp_path):
    """Sampling that generation_config.json asks for (21), in PyTorch and in ONNX Runtime."""
    from lib.evaluation import torch_scorer
    from lib.onnx.runtime import Reader, load_onnx

    base = Path(shutil.copytree(learned.base, tmp_path / "base"))
    path = base / "generation_config.json"
    write_json(path, read_json(path) | {"do_sample": True, "temperature": 5.0, "top_k": 500, "top_p": 0.99})
    write_manifest(base, inputs={}, settings={})
    tokenizer, model = load_tokenizer(base), load_model(base)
    prompts = tokenizer.encode_batch([row["prompt"] for row in learned.rows()[:3]])
    answers = [torch_scorer.decode_greedily(model, tokenizer, [ids], 6)[0] for _ in range(3) for ids in prompts]
    onnx = load_onnx(build(base, learned.corpus / "validation.jsonl", tmp_path / "fp32", precision="fp32"), threads=1)
    reader = Reader(onnx, max(map(len, prompts)) + 6)
    said = [(reader.read(ids), reader.answer(6))[1] for _ in range(3) for ids in prompts]
    assert said == answers
    assert answers == answers[:3] * 3


def test_the_cache_is_as_long_as_prompt_and_answer(learned, tmp_path, monkeypatch):
    """A key-value cache of the whole context (22), of which the buffer is made at once."""
    import onnxruntime_genai as og

    rooms = []

    class Watched(og.GeneratorParams):
        def set_search_options(self, **options: Any) -> None:
            rooms.append(options["max_length"])
            super().set_search_options(**options)

    monkeypatch.setattr(og, "GeneratorParams", Watched)
    shared = learned.scored_onnx(learned.int4)
    tokenizer = load_tokenizer(learned.base)
    longest = max(len(ids) for ids in tokenizer.encode_batch([row["prompt"] for row in learned.rows()]))
    answer = max(len(tokenizer.encode(row["completion"])) for row in learned.rows())
    assert max(rooms) == longest + answer + 2

    apart = Path(shutil.copytree(learned.int4, tmp_path / "apart"))
    config = read_json(apart / "genai_config.json")
    config["search"]["past_present_share_buffer"] = not config["search"]["past_present_share_buffer"]
    write_json(apart / "genai_config.json", config)
    other = learned.scored_onnx(apart)
    assert [row["answer"] for row in other] == [row["answer"] for row in shared]
    for one, two in zip(other, shared, strict=True):
        assert one["log_probs"] == pytest.approx(two["log_probs"], abs=1e-3)


def remade(base: Path, folder: Path, **changes: Any) -> Path:
    """A random model like `base` with another configuration, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(base)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    write_manifest(folder, inputs={}, settings={})
    return folder


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_prompts_are_read_alike_within_a_sliding_window_and_far_behind_it(request, tmp_path, family):
    """Positions and windows that two runtimes count differently (23); one model has a window, one has none."""
    from lib.onnx.runtime import Reader, load_onnx

    base = remade(
        request.getfixturevalue(f"tiny_{family}"),
        tmp_path / "base",
        **({"sliding_window": 32} if family == "phi3" else {}),
    )
    corpus = write_corpus(tmp_path / "corpus", base)
    folder = build(base, corpus / "rows.jsonl", tmp_path / "fp32", precision="fp32")
    onnx, model = load_onnx(folder, threads=1), load_model(base)
    ids = np.random.default_rng(0).integers(10, 900, 400).tolist()
    reader = Reader(onnx, 404)
    for length in (16, 31, 32, 33, 90, 400):
        with torch.inference_mode():
            expected = model(torch.tensor([ids[:length]])).logits[0, -1].numpy()
        assert np.abs(reader.read(ids[:length]) - expected).max() < 1e-4 * np.abs(expected).max(), length
    with torch.inference_mode():
        written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, eos_token_id=[2, 3])
    assert written[0, 400:].tolist() == reader.answer(4)
    with pytest.raises(UserError, match="take 513 tokens, the model takes 512"):
        Reader(onnx, 513)


def test_rows_longer_than_the_sliding_window_are_trained_as_the_model_reads_them(tiny_phi3):
    """Packed rows, whose table of attention knows no window by itself."""
    from lib.training import batching, packing

    model = load_model(tiny_phi3)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 8
    model.config.sliding_window = 8
    ids = np.random.default_rng(0).integers(10, 900, (3, 30)).tolist()
    examples = [
        {"input_ids": row, "labels": [batching.IGNORED] * 25 + row[25:]} for row in (ids[0], ids[1][:27], ids[2])
    ]
    expected = [alone(model, example) for example in examples]
    assert packing.can_pack(model, examples, pad_id=2)
    for example, loss in zip(examples, expected, strict=True):
        other = {**examples[0], "input_ids": [5, *examples[0]["input_ids"][1:]]}
        batch = packing.PackingCollator()([other, example])
        labels = batch["labels"].clone()
        labels[:, 1:6] = batching.IGNORED  # of the other row
        assert abs(packing._loss(model, {**batch, "labels": labels}) - loss) < 1e-5 * loss


def alone(model: Any, example: dict[str, Any]) -> float:
    """The mean loss of one row's supervised tokens, by the model's own forward."""
    ids = torch.tensor([example["input_ids"]])
    with torch.inference_mode():
        return float(model(ids, labels=torch.tensor([example["labels"]])).loss)


@pytest.mark.parametrize("block", [32, 128])
def test_rows_that_no_block_divides_are_quantized_whole(tiny_llama, tmp_path, block):
    """A last block of another size (25): 100 columns in blocks of 32 or of 128."""
    base = remade(tiny_llama, tmp_path / "base", intermediate_size=100)
    corpus = write_corpus(tmp_path / "corpus", base)
    folder = build(base, corpus / "rows.jsonl", tmp_path / "int4", block_size=block)
    graph, original = Graph(folder / "model.onnx"), weights_of(base)["model.layers.1.mlp.down_proj.weight"]
    weight = graph.read_quantized(next(name for name in graph.quantized if "layers.1/mlp/down_proj" in name))
    assert (weight.columns, weight.codes.shape[1]) == (100, -(-100 // block))
    steps = np.repeat(np.abs(weight.scales), block, axis=1)[:, :100]
    # The grid has one code less on one side of zero: there a value may lie a whole step away.
    assert (np.abs(dequantize(weight) - original) <= 1.001 * steps).all()
    inside = np.abs(original) < 6.9 * steps
    assert (np.abs(dequantize(weight) - original)[inside] <= 0.51 * steps[inside]).all()


def weights_of(base: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(base / "model.safetensors")


def fp32_weight(folder: Path, node: str) -> np.ndarray:
    """The weight of a MatMul node, [out, in]."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(folder / "model.onnx")).graph
    name = next(one.input[1] for one in graph.node if one.name == node)
    return numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name)).T


def test_the_builder_computes_in_the_precision_of_the_merged_weights(learned, tmp_path):
    """Weights that the builder loads in 16 bits (37): values and scales would be rounded."""
    rows = learned.corpus / "validation.jsonl"
    fp32 = build(learned.merged, rows, tmp_path / "fp32", precision="fp32")
    original = weights_of(learned.merged)["model.layers.0.self_attn.o_proj.weight"]
    assert np.array_equal(fp32_weight(fp32, "/model/layers.0/attn/o_proj/MatMul"), original)
    weight = Graph(learned.int4 / "model.onnx").read_quantized("/model/layers.0/attn/o_proj/MatMul_Q4")
    blocks = original.reshape(*weight.codes.shape)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[:, :, None], axis=-1)[:, :, 0]
    assert np.allclose(np.abs(weight.scales), np.abs(largest) / 8, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "step"),
    [({"nodes_to_exclude": ["/lm_head/MatMul"]}, 0), ({"matmul_mixed_precision": "last_matmul:int8"}, 1 / 128)],
)
def test_a_head_that_is_spared_is_spared(learned, tmp_path, options, step):
    """A vocabulary head in 4 bits shifts the labels against each other (27): what spares it must do so."""
    folder = build(learned.merged, learned.corpus / "validation.jsonl", tmp_path / "int4", **options)
    head, graph = weights_of(learned.merged)["lm_head.weight"], Graph(folder / "model.onnx")
    nodes = [name for name in graph.quantized if "lm_head" in name]
    found = dequantize(graph.read_quantized(nodes[0])) if nodes else fp32_weight(folder, "/lm_head/MatMul")
    assert np.abs(found - head).max() <= step * np.abs(head).max()
    merged = learned.scored(load_model(learned.merged))
    assert kl(merged, learned.scored_onnx(folder)) < kl(merged, learned.scored_onnx(learned.int4))


def test_no_adapter_is_quantized(learned, tmp_path):
    """LoRA matrices in 4 bits (28): they are in the merged weights, and the builder's own way is closed."""
    from lib.config.loader import load_config

    graph = Graph(learned.int4 / "model.onnx")
    assert len(graph.quantized) == 11
    assert not [name for name in graph.node_names if "lora" in name.lower()]
    values = {
        "data": {"files": ["a.json"], "target": "tone"},
        "base_model": {"path": "base", "parameters": 1},
        "corpus": {"text_template": "{text}\n{tone}"},
    }
    load_config(values, [])
    with pytest.raises(UserError, match=r"variants\.int4\.adapter_path is not a known key"):
        load_config(values | {"variants": {"int4": {"adapter_path": "adapter"}}}, [])


def test_no_weight_depends_on_the_rows_that_a_build_is_checked_with(learned, tmp_path):
    """Weights fitted to rows that score them (29): rows are answered, and nothing is fitted to them."""
    other = tmp_path / "rows.jsonl"
    write_jsonl(other, [{**row, "prompt": row["prompt"].replace("the", "42")} for row in learned.rows("train")])
    again = build(learned.merged, other, tmp_path / "int4")
    assert build_manifest_path(again).read_bytes() == build_manifest_path(learned.int4).read_bytes()


# Scores


def test_a_short_label_cannot_win_by_being_short(learned):
    """Sums of log probabilities (34): with the end token they are those of whole answers, which exclude each other."""
    tokenizer = load_tokenizer(learned.base)
    assert len({len(tokenizer.encode(label)) for label in LABELS}) > 1
    predictions = learned.scored(load_model(learned.base)) + learned.scored(load_model(learned.merged))
    assert all(sum(np.exp(list(row["log_probs"].values()))) <= 1 + 1e-5 for row in predictions)
    per_class = measured(learned.scored(load_model(learned.merged)))["per_class"]
    assert {label: per_class[label]["recall"] for label in LABELS} == dict.fromkeys(LABELS, 1)


def test_scores_and_package_name_one_template(learned, tmp_path):
    """Another template in use than in training (5, 35): its hash is in every score and in the package."""
    from lib.core.files import hash_file
    from support.onnx_samples import score
    from support.packaged_model import package

    rows = tmp_path / "rows"
    shutil.copytree(learned.corpus, rows)
    shutil.move(rows / "validation.jsonl", rows / "rows.jsonl")
    found, _ = score(learned.int4, learned.base, rows, tmp_path / "score.json")
    shutil.copytree(learned.int4, tmp_path / "runs/lora/onnx/int4")
    shutil.copyfile(build_manifest_path(learned.int4), tmp_path / "runs/lora/onnx/int4.manifest.json")
    model = package(tmp_path, learned.base, learned.corpus)
    packaged = read_json(build_manifest_path(model))["files"]["template.json"]
    assert packaged == found["inputs"]["template"] == hash_file(learned.corpus / "template.json")


def test_models_are_loaded_as_transformers_own_classes(learned, tmp_path):
    """Code that comes with a model, and a mask of its own (36)."""
    base = Path(shutil.copytree(learned.base, tmp_path / "base"))
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}, "attn_implementation": "eager"}
    write_json(base / "config.json", read_json(base / "config.json") | own)
    (base / "modeling_phi3.py").write_text("raise SystemExit('code of a model was run')")
    model = load_model(base)
    assert type(model).__module__ == "transformers.models.phi3.modeling_phi3"
    assert model.config._attn_implementation == "sdpa"


def test_the_report_tells_how_good_the_model_is_without_the_word_of_the_label(tmp_path, run_script):
    """A model that only finds the label's word (12): its accuracy on rows without it stands beside the baselines'."""
    import re

    from support.made_run import LABELS as MADE_LABELS
    from support.made_run import MadeRun

    run = MadeRun(tmp_path / "run", run_script).finish()
    texts = {row["id"]: row["prompt"] for row in run.rows["test"]}
    lines = read_jsonl(run.path("scores/model.test.predictions.jsonl"))
    hidden = [row for row in lines if not re.search(rf"\b{row['label']}\b", texts[row["id"]])]
    assert 0 < len(hidden) < len(texts)
    assert all(label in "".join(texts.values()) for label in MADE_LABELS)
    accuracy = sum(row["predicted"] == row["label"] for row in hidden) / len(hidden)
    page = re.sub(r"<[^>]+>|\s+", " ", run.path("report.html").read_text())
    table = page.partition(f"on the {len(hidden)} test rows whose text does not hold the word of their own label")[2]
    assert re.search(rf"The model\s+{accuracy:.3f}\b", table), table[:600]


def test_a_row_that_is_there_three_times_is_in_one_split_once(tiny_phi3, tmp_path):
    """Rows multiplied before the split (13): copies in other clothes too would be in training and in test."""
    from support.data_stages import audit, row, split

    phrases = [f"{number} {' '.join(np.random.default_rng(number).permutation(SENTENCE))}" for number in range(60)]
    rows = [row(text, ("joy", "fear")[number % 2]) for number, text in enumerate(phrases)]
    copies = [{**one, "phrase": f" {one['phrase'].upper()}! "} for one in rows]
    _, kept, rejected = audit(tmp_path, tiny_phi3, [*rows, *rows, *copies])
    places = split(tmp_path, kept)["rows"]
    assert len(rejected) == len(rows)
    assert len(places) == len(kept) == 2 * len(rows)
    of_number: dict[str, set[str]] = {}
    for one in kept:
        of_number.setdefault(one["values"]["phrase"].split()[0], set()).add(places[one["id"]])
    assert len(of_number) == 60
    assert all(len(splits) == 1 for splits in of_number.values())
    assert set(places.values()) == {"train", "validation", "test"}
