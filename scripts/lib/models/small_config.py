"""A configuration made small: the same kind of model, with fewer and narrower layers.

A random model of it is trained, merged and built in seconds, and goes through the same code as the model itself: the
kinds of layers, their order, every flag and factor stay. What follows from the true sizes has to be computed from the
true configuration.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

# Unlike any other width: onnxruntime-genai 0.18.0 builds a wrong model where the inner width is the vocabulary's.
VOCABULARY = 960
WINDOW = 24
_HEAD = 32
_WIDEST = 256  # of which the root is whole, too: the builder rounds the factor that Gemma scales embeddings by
_POSITIONS = 256
_SHORT_SHARE = 0.875  # of the positions: the shorter context that longrope begins with
_EXPERTS = 4
# Sizes that nothing else depends on, at most.
_LIMITS = {
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "top_k_experts": 2,
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "moe_intermediate_size": 64,
    "shared_intermediate_size": 128,
    "shared_expert_intermediate_size": 64,
    "expert_intermediate_size": 64,
    "hidden_size_per_layer_input": 32,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_dense_layers": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 32,
    "sliding_window": WINDOW,
}


def shrink_config(config: Any, positions: int = _POSITIONS) -> Any:
    """Return a small copy of a language model's configuration (PreTrainedConfig) of one stack of layers.

    At least two layers, and as many as show each kind in its order; hidden size about 256. positions: of the context.
    """
    small = copy.deepcopy(config)
    full = config.to_dict()
    heads = shrink_heads(full)
    sizes = heads | {name: min(full[name], most) for name, most in _LIMITS.items() if _is_size(full.get(name))}
    sizes |= _shrink_layers(full) | _shrink_linear_heads(full) | _shrink_mamba(full, heads["hidden_size"])
    for name in ("intermediate_size", "ffn_hidden_size", "mlp_dim"):
        if _is_size(full.get(name)):
            sizes[name] = 2 * heads["hidden_size"]
    if "block_auto_adjust_ff_dim" in full:  # LFM2 computes its width again from this one
        sizes |= {"block_auto_adjust_ff_dim": False, "conv_dim": heads["hidden_size"]}
    sizes |= _shrink_positions(full, positions)
    sizes["rope_parameters"] = _shrink_rope(full, sizes)
    sizes["vocab_size"] = VOCABULARY
    if "vocab_size_per_layer_input" in full:
        sizes["vocab_size_per_layer_input"] = VOCABULARY
    sizes |= place_token_ids(full, VOCABULARY)
    for name, value in sizes.items():
        if value is not None or full.get(name) is not None:
            setattr(small, name, value)
    # Classes derive much when they are made: what a loaded file would give is what counts.
    found = {**small.to_dict(), "architectures": config.architectures}
    if layers := found.pop("per_layer_config", None):  # Gemma 4: heads of other sizes in some layers
        size = next(iter(layers.values())).get("head_dim")
        found["global_head_dim"] = heads["head_dim"] * max(1, min(2, size // full["head_dim"])) if size else None
    return type(config).from_dict(found)


def shrink_heads(full: Mapping[str, Any]) -> dict[str, int]:
    """Return fewer and smaller heads in about the same ratio, and the hidden size that goes with them.

    Widths are multiples of 256 where heads allow it, so that blocks of any size fit; partly rotated heads keep their
    size, of which the rotated part is a share that kernels must take.
    """
    heads, hidden = full["num_attention_heads"], full["hidden_size"]
    groups = full.get("num_key_value_heads") or heads
    size = full.get("head_dim") or hidden // heads
    small = size if _is_partly_rotated(full) else min(size, _HEAD)
    count = max(2, 1 << math.ceil(math.log2(_WIDEST / small)))
    ratio = min(count, 1 << round(math.log2(heads / groups)))
    found = {"num_attention_heads": count}
    if full.get("num_key_value_heads") is not None:
        found["num_key_value_heads"] = count // ratio
    if full.get("head_dim") is not None:
        found["head_dim"] = small
    # A model whose heads fill the hidden size computes one of the two from the other.
    found["hidden_size"] = count * small if heads * size == hidden else _WIDEST
    if full.get("num_global_key_value_heads"):
        found["num_global_key_value_heads"] = min(count // ratio, full["num_global_key_value_heads"])
    return found


def read_rotated_share(full: Mapping[str, Any]) -> float:
    """Return the share of a head that the rotary embedding turns."""
    rope = full.get("rope_parameters") or {}
    return float(rope.get("partial_rotary_factor") or full.get("partial_rotary_factor") or 1.0)


def _is_partly_rotated(full: Mapping[str, Any]) -> bool:
    return (_HEAD * read_rotated_share(full)) % (_HEAD // 2) != 0


def count_layers(full: Mapping[str, Any]) -> int:
    """Return how many layers show every kind of layer, at least two."""
    layers = full["num_hidden_layers"]
    lists = [value for value in full.values() if isinstance(value, list) and len(value) == layers > 1]
    kinds = [str(kind) for kind in zip(*lists, strict=True)]
    seen = max((kinds.index(kind) + 1 for kind in set(kinds)), default=1)
    return min(layers, max(2, seen))


def _shrink_layers(full: Mapping[str, Any]) -> dict[str, Any]:
    layers, count = full["num_hidden_layers"], count_layers(full)
    lists = {name: value for name, value in full.items() if isinstance(value, list) and len(value) == layers > 1}
    sizes: dict[str, Any] = {}
    if full.get("num_kv_shared_layers"):  # the last layers take keys and values of earlier ones of their kind
        sizes["num_kv_shared_layers"] = count
        lists = {name: value[:count] * 2 for name, value in lists.items()}
        count *= 2
    sizes["num_hidden_layers"] = count
    for name in ("max_window_layers", "first_k_dense_replace"):
        if isinstance(full.get(name), int):
            sizes[name] = min(full[name], count)
    return sizes | {name: value[:count] for name, value in lists.items()}


def _shrink_positions(full: Mapping[str, Any], positions: int) -> dict[str, Any]:
    longest = full.get("max_position_embeddings")
    first = full.get("original_max_position_embeddings")
    if not longest:
        return {}
    positions = min(longest, positions)
    sizes = {"max_position_embeddings": positions}
    if first:
        sizes["original_max_position_embeddings"] = int(_SHORT_SHARE * positions) if first < longest else positions
    return sizes


def _shrink_rope(full: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    rope = copy.deepcopy(full.get("rope_parameters"))
    if not isinstance(rope, dict):
        return rope
    head = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    for part in rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]:
        rotated = int(head * part.get("partial_rotary_factor", full.get("partial_rotary_factor") or 1.0))
        for name in ("short_factor", "long_factor"):
            if name in part:
                part[name] = _thin_out(part[name], rotated // 2)
        if part.get("rope_type") == "longrope" and "original_max_position_embeddings" in part:
            part["original_max_position_embeddings"] = sizes["original_max_position_embeddings"]
        if part.get("mrope_section"):
            part["mrope_section"] = _divide(rotated // 2, part["mrope_section"])
    return rope


def _thin_out(values: list[float], count: int) -> list[float]:
    return [values[index * len(values) // count] for index in range(count)]


def _divide(total: int, parts: list[int]) -> list[int]:
    """Return parts in about the same ratio that add up to `total`."""
    small = [max(1, total * part // sum(parts)) for part in parts]
    return [total - sum(small[1:]), *small[1:]]


def _shrink_linear_heads(full: Mapping[str, Any]) -> dict[str, int]:
    keys, values = full.get("linear_num_key_heads"), full.get("linear_num_value_heads")
    if not keys or not values:
        return {}
    return {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * max(1, values // keys)}


def _shrink_mamba(full: Mapping[str, Any], hidden: int) -> dict[str, int]:
    if not full.get("mamba_n_heads"):
        return {}
    return {"mamba_d_head": 16, "mamba_n_heads": full["mamba_expand"] * hidden // 16, "mamba_n_groups": 1}


def place_token_ids(full: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return the ids of special tokens that lie beyond a vocabulary, each at another place at its end."""
    names = [name for name in full if name.endswith("token_id") and full[name] is not None]
    given = sorted({one for name in names for one in _as_list(full[name])})
    place = {one: one if one < vocabulary - len(given) else vocabulary - 1 - n for n, one in enumerate(given)}
    return {
        name: [place[one] for one in full[name]] if isinstance(full[name], list) else place[full[name]]
        for name in names
    }


def _as_list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
