"""Products with the frozen weights of linear layers on a CPU, by oneDNN.

PyTorch multiplies float32 matrices by MKL, which reaches half of oneDNN's speed on AMD's processors where one side has
a few dozen rows, and five sixths where it has hundreds. oneDNN's own kernels are open to compiled models alone; the
operator that those use is called here, and MKL where a build of PyTorch lacks it.
"""

import os
from typing import Any

import torch

_KERNELS = "64"  # more than the layers of one batch need


def limit_kernel_cache() -> None:
    """Let oneDNN keep the kernels of the last batches alone, from its first use on.

    It compiles one for each shape and keeps 1,024, some hundred kilobytes each: batches of a training differ in length,
    so that is a gigabyte of kernels that hardly a batch uses again.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # of oneDNN, and of PyTorch's layer on it
        os.environ.setdefault(name, _KERNELS)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x weightᵀ + bias, without a gradient. x: [..., in]; weight: [out, in], fastest stored by columns."""
    if _has_kernel(weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def _has_kernel(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32  # in bfloat16 PyTorch's own products are oneDNN's
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _FrozenLinear(torch.autograd.Function):
    """y = x Wᵀ + b with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return multiply(x.to(weight.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return multiply(dy, weight.t()).to(ctx.dtype), None, None


def use_onednn(model: Any) -> int:
    """Let a model's frozen linear layers on the CPU multiply by oneDNN; return how many do.

    Their weights are stored by columns from then on, but for those that are embeddings too, whose rows are looked up.
    """
    shared = model.get_input_embeddings().weight
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is torch.nn.Linear and not layer.weight.requires_grad and _has_kernel(layer.weight)
    ]
    for layer in layers:
        if layer.weight is not shared:
            layer.weight.data = layer.weight.data.t().contiguous().t()
        layer.forward = _bind(layer.weight, layer.bias)  # type: ignore[method-assign]
    return len(layers)


def _bind(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    def forward(x: torch.Tensor) -> Any:
        return _FrozenLinear.apply(x, weight, bias)

    return forward
