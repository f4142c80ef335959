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
from itertools import chain
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
    each, and of one that predicts nothing; `layout`: the table that `attend_packed` sees. `real_tokens` counts
    the tokens of all rows as if none were shared or left off.
    Of examples with a weight also `weights` [1, 1 + targets]: that of each label, 0 for the ignored one.
    """

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        # What stands last in a row predicts nothing and nothing sees it.
        rows = [example["input_ids"][:-1] for example in examples]
        shared = find_shared_prefix(rows) if len(rows) > 1 else 0
        # Python only concatenates lists: its loops over tokens took ten times as long, and a GPU waits meanwhile.
        own = torch.tensor([len(ids) - shared for ids in rows])
        starts = shared + own.cumsum(0) - own
        input_ids = torch.tensor([*rows[0][:shared], *chain.from_iterable(ids[shared:] for ids in rows)])
        tokens = len(input_ids)
        labels = torch.tensor(list(chain.from_iterable(example["labels"] for example in examples)))
        supervised = (labels != IGNORED).nonzero()[:, 0]
        if not len(supervised):
            raise ValueError("a batch without a supervised token")
        row, place = _find_rows(torch.tensor([len(example["labels"]) for example in examples]))
        row, place = row[supervised], place[supervised]
        predictors = torch.where(place <= shared, place - 1, starts[row] + place - shared - 1)
        kept = torch.cat([predictors, torch.tensor([tokens - 1])])
        batch = {
            "input_ids": input_ids[None],
            "position_ids": torch.cat([torch.arange(shared), shared + _find_rows(own)[1]])[None],
            "labels": torch.cat([torch.tensor([IGNORED]), labels[supervised]])[None],
            "logits_to_keep": kept,
            "layout": build_attention_table(shared, starts, tokens),
            "real_tokens": sum(len(example["input_ids"]) for example in examples),
        }
        if "weight" in examples[0]:
            weights = torch.tensor([example.get("weight", 1.0) for example in examples])
            batch["weights"] = torch.cat([torch.zeros(1), weights[row]])[None]
        return batch


def _find_rows(lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row of each token and its place in that row, when rows of these lengths are concatenated."""
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    return row, torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]


def build_attention_table(shared: int, starts: torch.Tensor, tokens: int) -> dict[str, Any]:
    """Return where each packed token stands among the queries and keys of a padded table.

    starts: place of each row's first own token, behind the `shared` ones. `queries` [lines, longest]
    and `keys` [lines, shared + longest] hold places of tokens: a line for each row, and before them
    as many as the shared beginning fills. `seen` [lines] is how many keys stand before a line's first query; each
    query sees these and those up to its own (`build_mask`). `places` [tokens] is each token's place in the flattened
    queries. Padding stands behind a line's tokens, where causality hides it, and repeats a token.
    """
    ends = torch.cat([starts[1:], torch.tensor([tokens])])
    longest = int((ends - starts).max())
    seen = torch.arange(0, shared, longest)
    firsts = torch.cat([seen, starts])
    ends = torch.cat([torch.full_like(seen, shared), ends])
    queries = torch.minimum(firsts[:, None] + torch.arange(longest), ends[:, None] - 1)
    line, step = _find_rows((ends - firsts).clamp(max=longest))
    return {
        "queries": queries,
        "keys": torch.cat([torch.arange(shared).expand(len(queries), -1), queries], dim=1),
        "places": line * longest + step,
        "seen": torch.cat([seen, torch.full_like(starts, shared)]),
        "shared": shared,
    }


def build_mask(layout: dict[str, Any], window: int | None = None) -> torch.Tensor:
    """Return which keys each query sees, [lines, longest, keys], on the device of the layout.

    window: of a layer with a sliding window, how many tokens a query sees, itself included; None: all before it.
    The mask is by far the largest tensor of a batch. So it is not moved but built where the first layer needs it, and
    all layers share it: each one's own would be kept for the backward pass.
    """
    masks = layout.setdefault("masks", {})
    if window not in masks:
        longest, keys = layout["queries"].shape[1], layout["keys"].shape[1]
        place = torch.arange(keys, device=layout["seen"].device)
        last = (layout["seen"][:, None] + place[:longest])[:, :, None]
        mask = last >= place
        masks[window] = mask if window is None else mask & (place > last - window)
    return masks[window]


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
    queries, keys = layout["queries"], layout["keys"]
    window = sliding_window if sliding_window is not None and keys.shape[1] > sliding_window else None
    if query.device.type == "cpu" and keys.shape[1] <= SHORT and not dropout:
        with torch.autocast("cpu", enabled=False):
            found = _short_attention(query.float(), key.float(), value.float(), scaling, layout, window)
        return found.to(query.dtype), None

    def table(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Rearrange [1, heads, tokens, size] as [lines, heads, longest, size]."""
        return states[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)

    lines = sdpa_attention_forward(
        module,
        table(query, queries),
        table(key, keys),
        table(value, keys),
        # Kernels know plain causality, and are faster without a mask.
        build_mask(layout, window)[:, None] if layout["shared"] or window is not None else None,
        dropout=dropout,
        scaling=scaling,
        **options,
    )[0]
    return lines.flatten(0, 1).index_select(0, layout["places"])[None], None


def _short_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    layout: dict[str, Any],
    window: int | None,
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

    mask = build_mask(layout, window)
    bias = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
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
    if not has_separate_rows(model.config):
        return False
    by_length = sorted(examples, key=lambda example: len(example["input_ids"]))
    if _packs(model, by_length[:2] + by_length[-2:], pad_id):
        return True
    model.set_attn_implementation(before)
    return False


def has_separate_rows(config: Any) -> bool:
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
