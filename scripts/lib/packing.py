"""Rows of a batch one behind the other, without padding; what all of them begin with stands there once.

The linear layers, nine tenths of the work, run on real tokens only, and on the instructions that a
template puts before every row once for each batch instead of once for each row. Only attention sees a
padded table: queries, keys and values are gathered into it and its result is gathered back, inside an
attention function of ours that transformers calls (its `AttentionInterface`). So every architecture
that uses this interface is trained unchanged; `can_pack` finds out by comparing the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lib.batches import IGNORED, Collator, Example, completion_loss
from lib.tokens import shared_beginning

ATTENTION = "packed_rows"


@dataclass(frozen=True)
class PackingCollator:
    """A batch as one sequence: the shared beginning, then the rest of each row.

    Returns input_ids and position_ids [1, tokens]; labels [1, 1 + targets], the supervised ids of all
    rows behind one that is ignored; `logits_to_keep` [targets + 1], the place of the token that predicts
    each, and of one that predicts nothing; and `layout` for `packed_attention`: `shared` (tokens at the
    beginning), `slots` [rows, longest rest] (place of each token, padded behind), `places`
    [tokens - shared] (where in the flattened slots each token stands). `real_tokens` counts the tokens
    of all rows as if none were shared.
    """

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        rows = [example["input_ids"] for example in examples]
        shared = shared_beginning(rows) if len(rows) > 1 else 0
        input_ids, position_ids = rows[0][:shared], list(range(shared))
        longest = max(map(len, rows)) - shared
        slots, places, labels, predictors = [], [], [IGNORED], []
        for number, (ids, example) in enumerate(zip(rows, examples, strict=True)):
            start = len(input_ids)
            rest = ids[shared:]
            slots.append([min(start + step, start + len(rest) - 1) for step in range(longest)])
            places += [number * longest + step for step in range(len(rest))]
            input_ids = input_ids + rest
            position_ids += range(shared, len(ids))
            for place, label in enumerate(example["labels"]):
                if label != IGNORED:
                    labels.append(label)
                    predictors.append(place - 1 if place <= shared else start + place - shared - 1)
        if not predictors:
            raise ValueError("a batch without a supervised token")
        return {
            "input_ids": torch.tensor([input_ids]),
            "position_ids": torch.tensor([position_ids]),
            "labels": torch.tensor([labels]),
            "logits_to_keep": torch.tensor([*predictors, len(input_ids) - 1]),
            "layout": {"shared": shared, "slots": torch.tensor(slots), "places": torch.tensor(places)},
            "real_tokens": sum(map(len, rows)),
        }


def packed_attention(
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
    """Causal attention of each row over the shared beginning and itself.

    query, key, value: [1, heads, tokens, head size]; returns [1, tokens, heads, head size].
    Raises `ValueError` when a row is longer than the model's sliding window.
    """
    shared, slots, places = layout["shared"], layout["slots"], layout["places"]
    if sliding_window is not None and shared + slots.shape[1] > sliding_window:
        raise ValueError("a row is longer than the sliding window")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return sdpa_attention_forward(module, q, k, v, mask, dropout=dropout, scaling=scaling, **options)[0]

    def table(states: torch.Tensor) -> torch.Tensor:
        """[1, heads, tokens, size] -> [rows, heads, longest rest, size]"""
        return states[0].index_select(1, slots.flatten()).unflatten(1, slots.shape).transpose(0, 1)

    def behind_shared(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states[:, :, :shared].expand(len(slots), -1, -1, -1), table(states)], dim=2)

    if not shared:
        rows = attend(table(query), table(key), table(value))
        return rows.flatten(0, 1).index_select(0, places)[None], None
    # Padding stands behind each row, where causality already hides it: one mask serves all rows.
    longest = slots.shape[1]
    mask = torch.ones(longest, shared + longest, dtype=torch.bool, device=slots.device).tril(shared)[None, None]
    rows = attend(table(query), behind_shared(key), behind_shared(value), mask)
    beginning = attend(query[:, :, :shared], key[:, :, :shared], value[:, :, :shared])
    return torch.cat([beginning[0], rows.flatten(0, 1).index_select(0, places)])[None], None


AttentionInterface.register(ATTENTION, packed_attention)


def can_pack(model: Any, examples: Sequence[Example], pad_id: int) -> bool:
    """Let `model` take packed rows when their loss is that of padded rows; tried on the longest and shortest ones.

    Otherwise (another way of attention, a sliding window shorter than the rows) it is left as it was.
    """
    before = model.config._attn_implementation
    if before == ATTENTION:
        return True
    by_length = sorted(examples, key=lambda example: len(example["input_ids"]))
    tried = by_length[:2] + by_length[-2:]
    training = model.training
    model.eval()
    expected = _loss(model, Collator(pad_id)(tried))
    try:
        model.set_attn_implementation(ATTENTION)
        found = _loss(model, PackingCollator()(tried))
    except (ValueError, TypeError):
        found = float("nan")
    finally:
        model.train(training)
    # Kernels for other shapes round differently; a wrong mask or position changes far more.
    tolerance = 2e-5 if model.dtype == torch.float32 else 3e-2
    if abs(found - expected) <= tolerance * max(1.0, abs(expected)):
        return True
    model.set_attn_implementation(before)
    return False


def _loss(model: Any, batch: dict[str, Any]) -> float:
    inputs = _on_device(batch, model.device)
    labels = inputs.pop("labels")
    inputs.pop("real_tokens")
    with torch.inference_mode():
        return completion_loss(model(**inputs), labels).item()


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _on_device(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
