"""Rows of a batch one behind the other, without padding; what all of them begin with stands there once.

The linear layers, nine tenths of the work, run on real tokens only, on none that stands last in a row, and
on the instructions that a template puts before every row once for each batch instead of once for each row.
Only attention sees a padded table: queries, keys and values are gathered into it and its result is gathered
back, inside an attention function of ours that transformers calls (its `AttentionInterface`). So every
architecture that uses this interface is trained unchanged; `can_pack` finds out by comparing the loss.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lib.data.tokenizer import find_shared_prefix
from lib.models.loading import choose_attention
from lib.models.small_config import shrink_config
from lib.training.batching import IGNORED, Collator, Example, compute_completion_loss

ATTENTION = "packed_rows"
SHORT = 128  # keys of a row up to which plain products are faster on a CPU than its attention kernel


@dataclass(frozen=True)
class PackingCollator:
    """A batch as one sequence: the shared beginning, then the rest of each row without its last token.

    Returns input_ids and position_ids [1, tokens]; labels [1, 1 + targets], the supervised ids of all
    rows behind one that is ignored; `logits_to_keep` [targets + 1], the place of the token that predicts
    each, and of one that predicts nothing; `layout`: the table that `attend_packed` sees, and the
    tokens whose logits are `needed`. `real_tokens` counts the tokens of all rows as if none were shared or left off.
    Of examples with a weight also `weights` [1, 1 + targets]: that of each label, 0 for the ignored one.
    """

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        # What stands last in a row predicts nothing and nothing sees it.
        rows = [example["input_ids"][:-1] for example in examples]
        shared = find_shared_prefix(rows) if len(rows) > 1 else 0
        input_ids, position_ids = rows[0][:shared], list(range(shared))
        starts, labels, predictors = [], [IGNORED], []
        weights = [0.0]
        for ids, example in zip(rows, examples, strict=True):
            start = len(input_ids)
            starts.append(start)
            input_ids = input_ids + ids[shared:]
            position_ids += range(shared, len(ids))
            for place, label in enumerate(example["labels"]):
                if label != IGNORED:
                    labels.append(label)
                    predictors.append(place - 1 if place <= shared else start + place - shared - 1)
            weights += [example.get("weight", 1.0)] * (len(labels) - len(weights))
        if not predictors:
            raise ValueError("a batch without a supervised token")
        batch = {
            "input_ids": torch.tensor([input_ids]),
            "position_ids": torch.tensor([position_ids]),
            "labels": torch.tensor([labels]),
            "logits_to_keep": torch.tensor([*predictors, len(input_ids) - 1]),
            "layout": {
                **build_attention_table(shared, starts, len(input_ids)),
                "needed": torch.tensor(sorted({*predictors, len(input_ids) - 1})),
            },
            "real_tokens": sum(len(example["input_ids"]) for example in examples),
        }
        if "weight" in examples[0]:
            batch["weights"] = torch.tensor([weights])
        return batch


def build_attention_table(shared: int, starts: Sequence[int], tokens: int) -> dict[str, Any]:
    """Return where each packed token stands among the queries and keys of a padded table.

    starts: place of each row's first own token, behind the `shared` ones. `queries` [lines, longest]
    and `keys` [lines, shared + longest] hold places of tokens: a line for each row, and before them
    as many as the shared beginning fills. `mask` [lines, longest, shared + longest] is true where a
    query sees a key; `places` [tokens] is each token's place in the flattened queries. Padding stands
    behind a line's tokens, where causality hides it, and repeats a token.
    """
    ends = [*starts[1:], tokens]
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    queries: list[list[int]] = []
    places: list[int] = []
    seen: list[int] = []
    for start in range(0, shared, longest):
        places += range(len(queries) * longest, len(queries) * longest + min(longest, shared - start))
        queries.append([min(start + step, shared - 1) for step in range(longest)])
        seen.append(start)
    beginnings = len(queries)
    for start, end in zip(starts, ends, strict=True):
        places += range(len(queries) * longest, len(queries) * longest + end - start)
        queries.append([min(start + step, end - 1) for step in range(longest)])
        seen.append(shared)
    keys = [[*range(shared), *(line if number >= beginnings else [0] * longest)] for number, line in enumerate(queries)]
    last_seen = torch.tensor(seen)[:, None] + torch.arange(longest)
    return {
        "queries": torch.tensor(queries),
        "keys": torch.tensor(keys),
        "places": torch.tensor(places),
        "mask": last_seen[:, :, None] >= torch.arange(shared + longest),
        "shared": shared,
    }


def attend_packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: dict[str, Any],
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention of each row over the shared beginning and itself.

    query, key, value: [1, heads, tokens, head size]; returns [1, tokens, heads, head size].
    Raises `ValueError` when a model caps scores (Gemma 2) or has sinks (GPT-OSS), which no path here computes.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ValueError("attention with capped scores or sinks")
    queries, keys, mask = layout["queries"], layout["keys"], layout["mask"]
    slides = sliding_window is not None and keys.shape[1] > sliding_window
    if sliding_window is not None and slides:
        layout = layout | {"mask": slide_mask(mask, sliding_window)}
        mask = layout["mask"]
    if query.device.type == "cpu" and keys.shape[1] <= SHORT and not dropout:
        with torch.autocast("cpu", enabled=False):
            found = _short_attention(query.float(), key.float(), value.float(), scaling, layout)
        return found.to(query.dtype), None

    def table(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Rearrange [1, heads, tokens, size] as [lines, heads, longest, size]."""
        return states[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)

    lines = sdpa_attention_forward(
        module,
        table(query, queries),
        table(key, keys),
        table(value, keys),
        mask[:, None] if layout["shared"] or slides else None,  # kernels know plain causality
        dropout=dropout,
        scaling=scaling,
        **options,
    )[0]
    return lines.flatten(0, 1).index_select(0, layout["places"])[None], None


def slide_mask(mask: torch.Tensor, window: int) -> torch.Tensor:
    """Return the causal mask [lines, queries, keys] of a layer that sees the last `window` tokens alone."""
    last = mask.sum(dim=-1, keepdim=True) - 1
    return mask & (torch.arange(mask.shape[-1], device=mask.device) > last - window)


def _short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, layout: dict[str, Any]
) -> torch.Tensor:
    """Return the same by plain batched products in float32; the queries of all heads that share a key stand
    together.
    """
    heads, tokens, size = query.shape[1:]
    kv_heads = key.shape[1]
    group = heads // kv_heads
    queries, keys, places = layout["queries"], layout["keys"], layout["places"]
    lines, longest = queries.shape
    head_start = torch.arange(heads).view(kv_heads, 1, group, 1) * tokens
    kv_start = torch.arange(kv_heads).view(kv_heads, 1, 1) * tokens

    def rows(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Rearrange [1, heads, tokens, size] as [kv heads x lines, places in a line, size]."""
        return states.flatten(0, 2).index_select(0, index.flatten()).view(kv_heads * lines, -1, size)

    bias = torch.zeros(layout["mask"].shape).masked_fill_(~layout["mask"], float("-inf"))
    scores = torch.baddbmm(
        bias[None, :, None].expand(kv_heads, -1, group, -1, -1).reshape(kv_heads * lines, group * longest, -1),
        rows(query, head_start + queries[:, None]),
        rows(key, kv_start + keys).transpose(1, 2),
        alpha=size**-0.5 if scaling is None else scaling,
    )
    found = torch.bmm(scores.softmax(-1), rows(value, kv_start + keys)).flatten(0, 1)
    # A token's place in `found`: kv head, line, head of the group, place in the line.
    line, step = places // longest, places % longest
    head = torch.arange(heads)
    place = ((head // group * lines + line[:, None]) * group + head % group) * longest + step[:, None]
    return found.index_select(0, place.flatten()).view(1, tokens, heads, size)


AttentionInterface.register(ATTENTION, attend_packed)


@contextmanager
def disable_packing(model: Any) -> Iterator[None]:
    """Let a model that `can_pack` changed take ordinary batches, with masks and a key-value cache, for a while."""
    before = model.config._attn_implementation
    if before == ATTENTION:
        model.set_attn_implementation(choose_attention(model.config))
    try:
        yield
    finally:
        if before == ATTENTION:
            model.set_attn_implementation(before)


def can_pack(model: Any, examples: Sequence[Example], pad_id: int) -> bool:
    """Let `model` take packed rows when their loss is that of padded rows; tried on the longest and shortest ones.

    Otherwise (another way of attention, a state that runs on from row to row) it is left as it was. Whether rows see
    each other is tried on a small float32 model of its kind: bfloat16 rounds away what leaks.
    """
    before = model.config._attn_implementation
    if before == ATTENTION:
        return True
    if not keeps_rows_apart(model.config):
        return False
    _shorten_last_mlp(model)
    by_length = sorted(examples, key=lambda example: len(example["input_ids"]))
    if _packs(model, by_length[:2] + by_length[-2:], pad_id):
        return True
    model.set_attn_implementation(before)
    return False


def keeps_rows_apart(config: Any) -> bool:
    """Return whether models of a configuration (PreTrainedConfig) compute packed rows as if each were alone.

    Tried on a small random model in float32, whose rows are longer than its sliding window.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = shrink_config(config)
        # Wider than by default: what one row sees of another must show in the loss.
        small.initializer_range = 0.2
        attention = choose_attention(small)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention)
        examples = [_draw_example(length, small.vocab_size) for length in (9, 40, 33)]
    return _packs(model.eval(), examples, pad_id=0)


def _draw_example(length: int, vocabulary: int) -> Example:
    ids = [1, 2, *torch.randint(vocabulary, (length - 2,)).tolist()]
    return {"input_ids": ids, "labels": [IGNORED] * (length - 4) + ids[-4:]}


def _packs(model: Any, examples: Sequence[Example], pad_id: int) -> bool:
    """Switch a model to packed rows and return whether its loss is then that of padded ones."""
    training = model.training
    model.eval()
    expected = _loss(model, Collator(pad_id)(examples))
    try:
        model.set_attn_implementation(ATTENTION)
        found = _loss(model, PackingCollator()(examples))
    except (ValueError, TypeError):
        found = float("nan")
    finally:
        model.train(training)
    # Kernels for other shapes round differently; a wrong mask or position changes far more.
    tolerance = 2e-5 if model.dtype == torch.float32 else 3e-2
    return abs(found - expected) <= tolerance * max(1.0, abs(expected))


def _shorten_last_mlp(model: Any) -> None:
    """Let the last layer's MLP, which no attention follows, see only packed tokens whose logits are needed."""
    layers = getattr(model.base_model, "layers", None)
    if not layers or not hasattr(layers[-1], "mlp"):
        return
    mlp = layers[-1].mlp
    whole, needed = mlp.forward, None

    def remember(_module: Any, _inputs: Any, options: dict[str, Any]) -> None:
        nonlocal needed
        needed = options["layout"]["needed"] if "layout" in options else None

    def forward(states: torch.Tensor) -> Any:
        if needed is None:
            return whole(states)
        return torch.zeros_like(states).index_copy(1, needed, whole(states.index_select(1, needed)))

    layers[-1].register_forward_pre_hook(remember, with_kwargs=True)
    mlp.forward = forward


def _loss(model: Any, batch: dict[str, Any]) -> float:
    inputs = _on_device(batch, model.device)
    labels = inputs.pop("labels")
    inputs.pop("real_tokens")
    inputs.pop("weights", None)
    with torch.inference_mode():
        return compute_completion_loss(model(**inputs), labels).item()


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _on_device(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
