"""GPTQ (Frantar et al. 2023): round weights one column after the other, each error made good by the columns to come.

What a column's error costs is measured on training rows, by the second moments of the inputs of its layer. The grid of
a block is the one with the least squared error, each column weighted by the mean square of its input, as llama.cpp's
importance matrix weights it. The result has the layout of GPTQ's files, which the onnxruntime-genai builder takes over
as it is; the vocabulary head, and the embeddings tied to it, are left to the builder.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib.core.cli import explain_errors, fail, report_progress
from lib.core.files import read_json, write_json
from lib.hardware.onednn import use_onednn
from lib.models.loading import load_model
from lib.models.safetensors_streaming import locate_weights, read_weight

_HINT = "take algo_config: k_quant or default"
_BATCH = 32  # sequences that go through a layer at once
_DAMPING = 0.01  # of the mean second moment, added to each: GPTQ's own
_LARGEST, _MIDDLE = 15, 8  # code of 4 bits, and the one that stands for 0 on a symmetric grid
# Spans of a block's grid that are tried, by that of its weights.
_SHRINKS = torch.linspace(1.05, 0.6, 10)
_SMALLEST_STEP = 2.0**-24  # of float16


class Rounded(NamedTuple):
    """A matrix in 4 bits. codes: [out, in] uint8; scales, zeros: [out, blocks], float16 and uint8 (1 to 15)."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor


class _Call(NamedTuple):
    """How sequences of one length go through the decoder layers.

    states: of the first layer, [sequences, tokens, hidden]. options: what each layer is called with beside them.
    """

    states: torch.Tensor
    options: list[dict[str, Any]]


def run_gptq(merged: Path, rows: Sequence[list[int]], folder: Path, *, size: int, is_symmetric: bool) -> None:
    """Write the merged model with its linear layers in 4 bits to `folder`, as safetensors and config.json.

    rows: ids of each; size: weights in a block. Raises `UserError` when its layers cannot be run one by one, or a
    weight has another name in its files.
    """
    from safetensors.torch import save_file

    stored = locate_weights(merged)
    tensors: dict[str, torch.Tensor] = {}
    with explain_errors("GPTQ cannot round this model", _HINT):
        for name, rounded in round_model(load_model(merged), rows, size, is_symmetric):
            if stored.pop(f"{name}.weight", None) is None:
                fail(f"GPTQ cannot round this model: its files have no {name}.weight", _HINT)
            tensors |= {f"{name}.{part}": values for part, values in pack_gptq(rounded).items()}
    tensors |= {name: read_weight(where, name) for name, where in stored.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layout = {"quant_method": "gptq", "bits": 4, "group_size": size, "sym": is_symmetric, "desc_act": False}
    write_json(folder / "config.json", read_json(merged / "config.json") | {"quantization_config": layout})


def round_model(
    model: Any, sequences: Sequence[list[int]], size: int, is_symmetric: bool
) -> Iterator[tuple[str, Rounded]]:
    """Yield name and rounded weight of each linear layer within a model's decoder layers.

    One layer after the other is given the states that the whole model has there: what earlier layers lose by their
    rounding is not passed on. Passing it on takes a second run of each layer and was not better.
    """
    use_onednn(model.requires_grad_(False))
    layers, names = model.base_model.layers, {module: name for name, module in model.named_modules()}
    with torch.inference_mode():
        calls = [_record_call(model, batch) for batch in _batch_by_length(sequences)]
        states = [call.states for call in calls]
        for number, layer in enumerate(layers):
            moments, states = _measure_layer(layer, states, [call.options[number] for call in calls])
            for module, moment in moments.items():
                yield names[module], round_matrix(module.weight, moment, size, is_symmetric)
            if number % 5 == 4:
                report_progress(f"calibrate_weights: {number + 1} of {len(layers)} layers")


def _batch_by_length(sequences: Sequence[list[int]]) -> Iterator[torch.Tensor]:
    """Yield sequences of equal length together, so that none needs padding."""
    by_length: dict[int, list[list[int]]] = {}
    for ids in sequences:
        by_length.setdefault(len(ids), []).append(ids)
    for _, alike in sorted(by_length.items()):
        for start in range(0, len(alike), _BATCH):
            yield torch.tensor(alike[start : start + _BATCH])


def _record_call(model: Any, ids: torch.Tensor) -> _Call:
    """Return how a model calls its layers, each with mask and positions of its kind, without running them."""
    layers = model.base_model.layers
    found: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def record(*given: torch.Tensor, **options: Any) -> torch.Tensor:
        states = given[0] if given else options.pop("hidden_states")
        found.append((states, options))
        return states

    for layer in layers:
        layer.forward = record
    try:
        model.base_model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for layer in layers:
            del layer.forward  # the class has its own
    return _Call(found[0][0], [options for _, options in found])


def _measure_layer(
    layer: Any, states: Sequence[torch.Tensor], options: Sequence[dict[str, Any]]
) -> tuple[dict[torch.nn.Linear, torch.Tensor], list[torch.Tensor]]:
    """Return the second moments of the inputs of each linear layer in a decoder layer, [in, in], and its outputs.

    Linear layers of one input (q, k and v; gate and up) share their moments.
    """
    moments: dict[torch.nn.Linear, torch.Tensor] = {}
    read: list[tuple[torch.Tensor, torch.nn.Linear]] = []

    def add(module: torch.nn.Linear, given: tuple[torch.Tensor, ...]) -> None:
        same = next((other for inputs, other in read if inputs is given[0]), None)
        read.append((given[0], module))
        if same is not None:
            moments[module] = moments[same]
            return
        inputs = given[0].flatten(0, -2).float()
        if module not in moments:
            moments[module] = torch.zeros(inputs.shape[1], inputs.shape[1], device=inputs.device)
        moments[module].addmm_(inputs.T, inputs)

    modules = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(add) for module in modules]
    outputs = []
    for given, named in zip(states, options, strict=True):
        read.clear()
        output = layer(given, **named)
        outputs.append(output[0] if isinstance(output, tuple) else output)
    for hook in hooks:
        hook.remove()
    return moments, outputs


def round_matrix(weight: torch.Tensor, moments: torch.Tensor, size: int, is_symmetric: bool) -> Rounded:
    """Round a linear layer's weight to 4 bits so that its outputs change little.

    weight: [out, in]. moments: [in, in], sum of the outer products of its inputs. size: weights in a block.
    """
    importance = moments.diagonal().clamp(min=1e-12)
    inverse = factor_inverse(moments)
    left = weight.float().clone(memory_format=torch.contiguous_format)
    codes = torch.empty_like(left, dtype=torch.uint8)
    grids = []
    for start in range(0, left.shape[1], size):
        block, own = left[:, start : start + size], inverse[start : start + size, start : start + size]
        scales, zeros = fit_grid(block, importance[start : start + size], is_symmetric)
        grids.append((scales, zeros))
        steps, middles = scales.float(), zeros.float()
        errors = torch.empty_like(block)
        for column in range(size):
            value = block[:, column]
            code = (value / steps + middles).round_().clamp_(0, _LARGEST)
            codes[:, start + column] = code.to(torch.uint8)
            errors[:, column] = (value - (code - middles) * steps) / own[column, column]
            block[:, column + 1 :].addr_(errors[:, column], own[column, column + 1 :], alpha=-1)
        left[:, start + size :].addmm_(errors, inverse[start : start + size, start + size :], alpha=-1)
    scales, zeros = (torch.stack(part, dim=1) for part in zip(*grids, strict=True))
    return Rounded(codes, scales, zeros)


def factor_inverse(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments: [in, in]."""
    damping = _DAMPING * moments.diagonal().mean().clamp(min=1e-12)
    damped = moments + damping * torch.eye(len(moments), device=moments.device)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def fit_grid(block: torch.Tensor, importance: torch.Tensor, is_symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale (float16) and zero point (uint8) of each row of a block, [out, size], by the least weighted error.

    Of each span that is tried, the scale is the one that fits its codes best (least squares).
    """
    low, high = block.amin(dim=1).clamp(max=0), block.amax(dim=1).clamp(min=0)
    # On a symmetric grid the end that is farther from 0 gets code 0: that side has one code more.
    span = torch.where(-low >= high, -low, -high) / _MIDDLE if is_symmetric else (high - low) / _LARGEST
    span = torch.where(span.abs() < _SMALLEST_STEP, _SMALLEST_STEP, span)
    shrinks = _SHRINKS.to(block.device)[:, None]
    steps = span * shrinks
    middles = torch.full_like(steps, _MIDDLE)
    if not is_symmetric:  # what is cut off is cut off at both ends
        middles = (-low / steps - (1 - shrinks) / shrinks * _LARGEST / 2).round_().clamp_(1, _LARGEST)
    codes = (block / steps[..., None] + middles[..., None]).round_().clamp_(0, _LARGEST).sub_(middles[..., None])
    weighted = codes * importance
    power = (weighted * codes).sum(-1)
    fitted = torch.where(power > 0, (weighted * block).sum(-1) / power, steps).to(torch.float16).float()
    fitted = torch.where(fitted == 0, _SMALLEST_STEP, fitted)
    errors = ((codes * fitted[..., None] - block).square() * importance).sum(-1)
    best = errors.argmin(dim=0)[None]
    return fitted.gather(0, best)[0].to(torch.float16), middles.gather(0, best)[0].to(torch.uint8)


def pack_gptq(rounded: Rounded) -> dict[str, torch.Tensor]:
    """Return a layer's tensors as GPTQ's files have them (`lib.onnx.graph.dequantize_gptq`)."""
    columns, blocks = rounded.codes.shape[1], rounded.scales.shape[1]
    return {
        "qweight": _pack_eight(rounded.codes).T.contiguous(),
        "qzeros": _pack_eight((rounded.zeros - 1).T),
        "scales": rounded.scales.T.contiguous().cpu(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // (columns // blocks),
    }


def _pack_eight(codes: torch.Tensor) -> torch.Tensor:
    """Return codes of 4 bits with eight of a row in an int32, the lowest bits first: [rows, columns / 8]."""
    eights = codes.cpu().to(torch.int64).unflatten(1, (-1, 8))
    return (eights << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)
