"""Copies of models with other tensors."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def change(suffix: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: function(tensor) if name.endswith(suffix) else tensor for name, tensor in tensors.items()
    }


def spoiled(base: Path, folder: Path, spoil: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a model with other tensors."""
    shutil.copytree(base, folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(spoil(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
