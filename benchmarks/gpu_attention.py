"""Attention over packed rows for benchmarks/gpu.py: the padded table of `lib.training.packing`, and torch's varlen.

gpu.py puts `scripts` and `tests` on the path before it imports this module.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from gpu_checks import FACT, NOT_RUN, Result, judge, make_rows
from gpu_models import LLAMA, Plan, build_config, free_memory, synchronize
from transformers import AttentionInterface

from lib.training.packing import ATTENTION, PackingCollator, attend_packed

VARLEN = "varlen_rows"


class Segments(NamedTuple):
    """Packed rows as segments: the shared tokens, then each row.

    keys: places of the tokens that the segments see; None: each sees its own.
    """

    query_sizes: list[int]
    key_sizes: list[int]
    keys: torch.Tensor | None


def find_segments(layout: dict[str, Any]) -> Segments:
    """Return the segments that the padded table of a batch stands for."""
    shared, longest = layout["shared"], layout["queries"].shape[1]
    lines = layout["places"] // longest
    own = torch.bincount(lines, minlength=len(layout["queries"]))[-(-shared // longest) :].tolist()
    if not shared:
        return Segments(own, own, None)
    device = layout["places"].device
    beginning = torch.arange(shared, device=device)
    places, start = [beginning], shared
    for size in own:
        places += [beginning, torch.arange(start, start + size, device=device)]
        start += size
    return Segments([shared, *own], [shared, *(shared + size for size in own)], torch.cat(places))


def get_segments(layout: dict[str, Any]) -> Segments:
    """Return the segments of a batch, found once for all layers."""
    if "segments" not in layout:
        layout["segments"] = find_segments(layout)
    return layout["segments"]


def attend_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: dict[str, Any],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return what `attend_packed` does, by torch's attention of variable length. Only on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    segments = get_segments(layout)
    if "limits" not in layout:
        layout["limits"] = [
            torch.tensor([0, *sizes], device=query.device).cumsum(0, dtype=torch.int32)
            for sizes in (segments.query_sizes, segments.key_sizes)
        ]
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    if segments.keys is not None:
        keys, values = keys.index_select(0, segments.keys), values.index_select(0, segments.keys)
    query_limits, key_limits = layout["limits"]
    found: Any = varlen_attn(
        queries,
        keys,
        values,
        query_limits,
        key_limits,
        max(segments.query_sizes),
        max(segments.key_sizes),
        scale=scaling,
        window_size=(-1, 0),  # causal; of fewer queries than keys, the last query sees the last key
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return found[None], None


AttentionInterface.register(VARLEN, attend_varlen)


def attend_segments(states: list[torch.Tensor], layout: dict[str, Any]) -> torch.Tensor:
    """Return the same one segment after the other: slow, and plain enough to judge the others by."""
    segments, found = get_segments(layout), []
    query, key, value = states
    if segments.keys is not None:
        key, value = key.index_select(2, segments.keys), value.index_select(2, segments.keys)
    parts = (
        query.split(segments.query_sizes, dim=2),
        key.split(segments.key_sizes, dim=2),
        value.split(segments.key_sizes, dim=2),
    )
    for own, keys, values in zip(*parts, strict=True):
        mask = torch.ones(own.shape[2], keys.shape[2], dtype=torch.bool, device=own.device)
        mask = mask.tril(keys.shape[2] - own.shape[2])
        found.append(
            torch.nn.functional.scaled_dot_product_attention(own, keys, values, attn_mask=mask, enable_gqa=True)
        )
    return torch.cat(found, dim=2).transpose(1, 2)


def check_attention(plan: Plan) -> Iterator[Result]:
    """Compare and time three ways of attention over packed rows, on one layer of the Llama's shape."""
    config = build_config(LLAMA, plan.device)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    module = torch.nn.Module()
    module.num_key_value_groups = heads // kv_heads
    for length in plan.lengths:
        for shared in (0, 1):
            rows = make_rows(max(2, plan.batch_tokens[LLAMA] // length), length, config.vocab_size, shared)
            start = time.perf_counter()
            batch = PackingCollator()(rows)
            seconds = time.perf_counter() - start
            layout = send_to_device(batch["layout"], plan.device)
            tokens = layout["places"].numel()
            torch.manual_seed(0)
            states = [
                torch.randn(1, count, tokens, size, dtype=torch.bfloat16, device=plan.device, requires_grad=True)
                for count in (heads, kv_heads, kv_heads)
            ]
            name = f"attention, {length:,} tokens, {shared} shared"
            yield from _compare_attention(plan, name, module, states, layout)
            yield Result(f"{name}: collation", FACT, f"{len(rows)} rows, {tokens:,} tokens in {1000 * seconds:.1f} ms")
            free_memory()


def _compare_attention(
    plan: Plan, name: str, module: torch.nn.Module, states: list[torch.Tensor], layout: dict[str, Any]
) -> Iterator[Result]:
    expected = attend_segments(states, layout).detach().float()
    ways: dict[str, Any] = {ATTENTION: attend_packed} | ({VARLEN: attend_varlen} if plan.device == "cuda" else {})
    times = []
    for way, attend in ways.items():
        found = attend(module, *states, None, layout=layout)[0].detach().float()
        yield judge(f"{name}: {way}", float((found - expected).abs().max() / expected.abs().max()), 2e-2)
        times.append(f"{way} {1000 * time_attention(attend, module, states, layout):.2f} ms")
    times += [f"{VARLEN} {NOT_RUN}: no CUDA"] if plan.device == "cpu" else []
    yield Result(f"{name}: forward and backward", FACT, ", ".join(times))


def time_attention(attend: Any, module: torch.nn.Module, states: list[torch.Tensor], layout: dict[str, Any]) -> float:
    """Return the seconds of a forward and a backward pass, the best of some."""
    best, end = float("inf"), time.perf_counter() + 0.3
    while time.perf_counter() < end or best == float("inf"):
        synchronize()
        start = time.perf_counter()
        attend(module, *states, None, layout=layout)[0].sum().backward()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best
