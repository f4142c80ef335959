"""Scoring rows with a PyTorch model: probabilities of labels and references, free greedy answers.

Used for the scores of a checkpoint, and while training for choosing among checkpoints. The model is in
evaluation mode and has an attention that knows a key-value cache.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lib.core import distributed
from lib.core.cli import report_progress
from lib.data.templates import Template
from lib.data.tokenizer import Tokenizer, encode_pairs, find_shared_prefix
from lib.evaluation.bootstrap import compute_point_estimate
from lib.evaluation.metrics import build_statistics
from lib.evaluation.registry import SELECTED_BY
from lib.evaluation.scoring import answer_limit, answer_text, describe_references, encode_choices

# As an index and not as the number 1: a number gives the head a view with gaps, for which bfloat16 products on a CPU
# take room as if it had none (1.8 GB for the demo's prompts).
_LAST = torch.tensor([-1])


def measure_task_quality(
    model: Any,
    *,
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[dict[str, Any]],
    evaluate: dict[str, Any],
    with_loss: bool = False,
) -> dict[str, float]:
    """Return the metric of `SELECTED_BY` by its name, from 0: macro-F1 (to 1) over all rows, chrF (to 100) of free
    answers.

    Of several processes each scores its share of the rows, and all have the metric over all of them.
    evaluate: `batch_size`; for generation also `greedy_rows` (the first rows, at least one) and `max_new_tokens`.
    with_loss: of a classification, return also `loss`, which its scores tell; alone where it is not a finite number.
    """
    task, more = template["task"], {}
    if task == "classification":
        rows = distributed.shard(rows)
        found = score_labels(model, tokenizer, template, rows, evaluate["batch_size"])
        if with_loss:
            more = {"loss": compute_label_loss(tokenizer, rows, found)}
            if not math.isfinite(more["loss"]):
                return more
    else:
        rows = distributed.shard(rows[: evaluate["greedy_rows"]])
        found = [build_unscored_prediction(row, template) for row in rows]
        add_answers(model, tokenizer, template, rows, found, evaluate)
    predictions = distributed.gather_shards(found)
    name = SELECTED_BY[task]
    value = compute_point_estimate(build_statistics(task, predictions, template["labels"])[name])
    assert value is not None, "a row was scored"
    return {name: value, **more}


def compute_label_loss(
    tokenizer: Tokenizer, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]]
) -> float:
    """Return the mean loss of a token of the right labels, end tokens included, over the rows of all processes."""
    answers = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    loss_sum = -sum(prediction["log_probs"][prediction["label"]] for prediction in predictions)
    of_all = distributed.all_reduce_sum([loss_sum, sum(len(answer) for _, answer in answers)])
    return of_all[0] / of_all[1]


def score_labels(
    model: Any, tokenizer: Tokenizer, template: Template, rows: Sequence[dict[str, Any]], batch_size: int
) -> list[dict[str, Any]]:
    """Log probability of every label, in the order of `rows`."""
    labels = template["labels"] or []
    if not rows:  # the share of one process among more processes than rows
        return []
    choices = encode_choices(tokenizer, template, [row["prompt"] for row in rows])
    prefix = read_shared_prefix(model, choices)
    predictions: list[dict[str, Any]] = [{} for _ in rows]
    for places in batch_by_length([len(prompt) for prompt, _ in choices], batch_size):
        scores = score_choices(model, [choices[place] for place in places], prefix)
        for place, values in zip(places, scores.tolist(), strict=True):
            log_probs = dict(zip(labels, values, strict=True))
            predictions[place] = {
                "id": rows[place]["id"],
                "label": rows[place]["label"],
                "predicted": max(log_probs, key=lambda label: log_probs[label]),
                "log_probs": log_probs,
                "answer": None,
                "stopped": None,
            }
    return predictions


@dataclass(frozen=True)
class SharedPrefix:
    """The prefix that all prompts share (the template's fixed text), with its key-value cache."""

    tokens: int
    cache: Any


@torch.inference_mode()
def read_shared_prefix(model: Any, batch: Sequence[tuple[list[int], list[list[int]]]]) -> SharedPrefix:
    """Run the ids that all prompts share once; each prompt keeps at least one id of its own.

    batch: prompt ids with the ids of their choices. Nothing is shared where a text is longer than a sliding window:
    the window counts the padding between what is shared and what is not.
    """
    prompts = [prompt for prompt, _ in batch]
    room = max(len(prompt) + max(map(len, choices)) for prompt, choices in batch)
    is_shared = can_share_cache(model.config) and is_within_window(model.config, room)
    shared = find_shared_prefix(prompts) if is_shared else 0
    if shared == 0:
        return SharedPrefix(0, None)
    ids = torch.tensor([prompts[0][:shared]], device=model.device)
    return SharedPrefix(shared, model(input_ids=ids, use_cache=True, logits_to_keep=_LAST).cache)


def is_within_window(config: Any, room: int) -> bool:
    """Return whether texts of so many tokens fit into a model's sliding window, if it has one (PreTrainedConfig)."""
    window = getattr(config, "sliding_window", None)
    return not window or room <= window


def can_share_cache(config: Any) -> bool:
    """Return whether a model's cache can be repeated for several continuations: that of attention can, a state cannot.

    config: PreTrainedConfig. LFM2, Qwen 3.5 and Granite 4 Hybrid have layers of other kinds.
    """
    return set(getattr(config, "layer_types", None) or []) <= {"full_attention", "sliding_attention"}


@torch.inference_mode()
def score_choices(model: Any, batch: Sequence[tuple[list[int], list[list[int]]]], prefix: SharedPrefix) -> torch.Tensor:
    """Return summed log probability of each choice of each prompt: [prompts, choices].

    batch: prompt ids with the ids of their choices. What the prompts share is already run, the rest
    is run once; the tokens of each choice follow on its keys and values.
    """
    if not can_share_cache(model.config):
        return _score_whole_texts(model, batch)
    rests = [prompt[prefix.tokens :] for prompt, _ in batch]
    ids, own_mask = pad_left(rests, max(map(len, rests)), model.device)
    mask = torch.cat([torch.ones_like(own_mask[:, :1]).expand(-1, prefix.tokens), own_mask], dim=1)
    cache = copy.deepcopy(prefix.cache)
    if cache is not None:
        cache.batch_repeat_interleave(len(batch))
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=compute_positions(mask)[:, prefix.tokens :],
        cache=cache,
        use_cache=True,
        logits_to_keep=_LAST,
    )
    count = len(batch[0][1])
    answers = [answer for _, choices in batch for answer in choices]
    heads = torch.tensor([ids[0] for ids in answers], device=model.device).reshape(-1, count)
    scores = output.logits[:, -1].float().log_softmax(-1).gather(1, heads)
    if max(map(len, answers)) > 1:
        # All choices of all prompts in one forward: a small one costs as much as reading the weights.
        output.cache.batch_repeat_interleave(count)
        behind = score_continuations(model, output.cache, mask.repeat_interleave(count, dim=0), answers)
        scores = scores + behind.reshape(-1, count)
    return scores.cpu()


def _score_whole_texts(model: Any, batch: Sequence[tuple[list[int], list[list[int]]]]) -> torch.Tensor:
    """Return what `score_choices` does, with each prompt run again for each of its choices and nothing kept."""
    return torch.stack([_score_whole_prompt(model, prompt, choices) for prompt, choices in batch]).cpu()


def _score_whole_prompt(model: Any, prompt: list[int], choices: Sequence[list[int]]) -> torch.Tensor:
    """Return the summed log probability of each choice of one prompt: memory holds the logits of one row's choices.

    Texts are filled up on the right, where neither attention nor a state looks back from.
    """
    ids = pad_sequence([torch.tensor(prompt + answer) for answer in choices], batch_first=True)
    first = len(prompt) - 1
    kept = torch.arange(first, ids.shape[1] - 1, device=model.device)
    logits = model(input_ids=ids.to(model.device), logits_to_keep=kept, use_cache=False).logits
    found = logits.float().log_softmax(-1).gather(2, ids[:, first + 1 :, None].to(model.device))[:, :, 0]
    sums = [line[: len(answer)].sum() for line, answer in zip(found, choices, strict=True)]
    return torch.stack(sums)


def score_continuations(model: Any, cache: Any, mask: torch.Tensor, answers: Sequence[list[int]]) -> torch.Tensor:
    """Log probability of the ids behind the first of each answer, [answers]; `cache` holds its prompt."""
    # Answers differ in length: the shorter are padded behind and not counted.
    width = max(map(len, answers)) - 1
    given = torch.zeros((len(answers), width), dtype=torch.long)
    wanted, counted = given.clone(), given.clone()
    for place, ids in enumerate(answers):
        given[place, : len(ids) - 1] = torch.tensor(ids[:-1])
        wanted[place, : len(ids) - 1] = torch.tensor(ids[1:])
        counted[place, : len(ids) - 1] = 1
    given, wanted, counted = (
        part.to(mask.device) for part in (given, wanted, counted)
    )  # to a GPU at once, not by rows
    whole_mask = torch.cat([mask, torch.ones_like(given)], dim=1)
    output = model(
        input_ids=given,
        attention_mask=whole_mask,
        position_ids=compute_positions(whole_mask)[:, -width:],
        cache=cache,
        use_cache=True,
    )
    log_probs = output.logits.float().log_softmax(-1).gather(2, wanted[:, :, None])[:, :, 0]
    return (log_probs * counted).sum(dim=1)


@torch.inference_mode()
def score_references(
    model: Any, tokenizer: Tokenizer, template: Template, rows: Sequence[dict[str, Any]], batch_size: int
) -> list[dict[str, Any]]:
    """Log probability of each reference answer with its number of tokens, in the order of `rows`."""
    pairs = encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows])
    predictions: list[dict[str, Any]] = [{} for _ in rows]
    for places in batch_by_length([len(prompt) + len(answer) for prompt, answer in pairs], batch_size):
        sequences = [pairs[place][0] + pairs[place][1] for place in places]
        longest_answer = max(len(pairs[place][1]) for place in places)
        ids, mask = pad_left(sequences, max(map(len, sequences)), model.device)
        last = torch.arange(-longest_answer - 1, 0)
        output = model(input_ids=ids, attention_mask=mask, position_ids=compute_positions(mask), logits_to_keep=last)
        log_probs = output.logits[:, :-1].float().log_softmax(-1)
        targets = ids[:, -log_probs.shape[1] :]
        found = log_probs.gather(2, targets[:, :, None])[:, :, 0]
        for index, place in enumerate(places):
            size = len(pairs[place][1])
            predictions[place] = build_unscored_prediction(rows[place], template) | {
                "log_prob": float(found[index, -size:].sum()),
                "tokens": size,
            }
    return predictions


def add_answers(
    model: Any,
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[dict[str, Any]],
    predictions: list[dict[str, Any]],
    evaluate: dict[str, Any],
) -> None:
    """Put free greedy answers into the first predictions."""
    asked = rows[: evaluate["greedy_rows"]]
    if not asked:
        return
    choices = encode_choices(tokenizer, template, [asked[0]["prompt"]])[0][1] if template["labels"] else []
    limit = answer_limit(template, choices, evaluate["max_new_tokens"])
    prompts = tokenizer.encode_batch([row["prompt"] for row in asked])
    for places in batch_by_length([len(prompt) for prompt in prompts], evaluate["batch_size"]):
        batch = [prompts[place] for place in places]
        for place, ids in zip(places, decode_greedily(model, tokenizer, batch, limit), strict=True):
            predictions[place]["answer"], predictions[place]["stopped"] = answer_text(tokenizer, template, ids)


@torch.inference_mode()
def decode_greedily(model: Any, tokenizer: Tokenizer, prompts: list[list[int]], limit: int) -> list[list[int]]:
    """Return greedy continuations of at most `limit` tokens, with the end token where one came."""
    from transformers import GenerationConfig

    ids, mask = pad_left(prompts, max(map(len, prompts)), model.device)
    own = model.generation_config
    # What a call leaves open, generate() takes from the model's own settings: a base model's repetition_penalty would
    # give other answers here than in ONNX Runtime.
    model.generation_config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=sorted(tokenizer.end_ids),
        pad_token_id=min(tokenizer.end_ids),
        use_cache=True,  # the Trainer turns it off in the model's own configuration
    )
    try:
        return model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
    finally:
        model.generation_config = own


def build_unscored_prediction(row: dict[str, Any], template: Template) -> dict[str, Any]:
    """Return the prediction of a generation row of which nothing is known yet."""
    return {
        "id": row["id"],
        **describe_references(row, template),
        "answer": None,
        "stopped": None,
        "log_prob": None,
        "tokens": None,
    }


def pad_left(sequences: Sequence[list[int]], width: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, padded on the left: both [sequences, width]."""
    ids = torch.zeros((len(sequences), width), dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for index, sequence in enumerate(sequences):
        ids[index, width - len(sequence) :] = torch.tensor(sequence)
        mask[index, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def compute_positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def batch_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield places of rows in batches of like length, with a line about progress now and then."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    said = time.monotonic()
    for start in range(0, len(order), batch_size):
        if time.monotonic() - said > 20:
            report_progress(f"scored {start} of {len(order)} rows")
            said = time.monotonic()
        yield order[start : start + batch_size]
