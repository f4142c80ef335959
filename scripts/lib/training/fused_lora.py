"""LoRA layers in one step: peft's layers, weights and files, with the arithmetic of their forward fused.

peft computes `base(x) + scaling * B(A(x))` as separate operations: on a CPU a quarter of the time of a
small model goes into thin products and temporaries of full width. Here both products are added in
place to the base layer's, forward and backward, and nothing wider than the rank is kept for the
backward pass beside `x`.
"""

from typing import Any

import torch

from lib.hardware.onednn import multiply


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ; x [tokens, in], W [out, in] frozen, A [r, in], B [out, r] (Hu et al. 2021).

    Computed in the dtype of W; A and B may be wider, as peft keeps them for a bfloat16 base.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> Any:
        x, ctx.dtypes = x.to(weight.dtype), (x.dtype, a.dtype, b.dtype)
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        inner = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        return multiply(x, weight).addmm_(inner, b.t(), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight, a, b, inner = ctx.saved_tensors
        of_x, of_a, of_b = ctx.dtypes
        d_inner = (dy @ b).mul_(ctx.scaling)
        dx = multiply(dy, weight.t()).addmm_(d_inner, a).to(of_x) if ctx.needs_input_grad[0] else None
        return dx, None, (d_inner.t() @ x).to(of_a), (dy.t() @ inner).mul_(ctx.scaling).to(of_b), None


def fuse_lora(model: Any) -> int:
    """Give the plain LoRA layers of a peft model the fused forward; number of layers changed.

    Left to peft: layers with a variant (DoRA), dropout, bias or quantized base weights.
    """
    from peft.tuners.lora import Linear  # brings bitsandbytes, whose warnings belong into the log

    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and _is_plain(layer)]
    for layer in layers:
        layer.forward = _fuse_forward(layer)  # type: ignore[method-assign]
    return len(layers)


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        type(base) is torch.nn.Linear
        and base.bias is None
        and base.weight.dtype in (torch.float32, torch.bfloat16)
        and not layer.fan_in_fan_out
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and len(layer.active_adapters) == 1
        and isinstance(layer.lora_dropout[layer.active_adapters[0]], torch.nn.Identity)
    )


def _fuse_forward(layer: Any) -> Any:
    name = layer.active_adapters[0]
    weight, scaling = layer.get_base_layer().weight, layer.scaling[name]
    a, b = layer.lora_A[name], layer.lora_B[name]

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), weight, a.weight, b.weight, scaling)
        return y.view(*x.shape[:-1], -1)

    return forward
