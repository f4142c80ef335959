"""GPTQ: what its arithmetic promises, on small matrices and models."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Lfm2Config, LlamaConfig

from lib.onnx import gptq
from lib.onnx.gptq import Rounded, fit_grid, pack_gptq, round_matrix, round_model
from lib.onnx.graph import dequantize_gptq


def draw(out: int = 24, columns: int = 64, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs that depend on each other and differ in size, as those of a layer do."""
    torch.manual_seed(0)
    mixed = torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns)
    return torch.randn(out, columns), (mixed + 0.3 * torch.randn(rows, columns)) * torch.logspace(-1, 1, columns)


def values_of(rounded: Rounded) -> torch.Tensor:
    packed = {name: part.numpy() for name, part in pack_gptq(rounded).items()}
    return torch.tensor(dequantize_gptq(packed["qweight"], packed["scales"], packed["qzeros"]))


def output_error(weight: torch.Tensor, found: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (weight - found).T).square().mean())


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_outputs_change_less_than_by_rounding_each_weight_alone(is_symmetric, monkeypatch):
    """Ablation of the two parts: errors made good by later columns, and grids that weigh columns by their inputs."""
    weight, inputs = draw()
    moments = inputs.T @ inputs
    whole = output_error(weight, values_of(round_matrix(weight, moments, 32, is_symmetric)), inputs)
    alone = round_matrix(weight, torch.diag(moments.diagonal()), 32, is_symmetric)
    assert whole < 0.8 * output_error(weight, values_of(alone), inputs)
    plain = round_matrix(weight, torch.eye(64), 32, is_symmetric)
    assert output_error(weight, values_of(alone), inputs) < 0.95 * output_error(weight, values_of(plain), inputs)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_weights_on_a_grid_stay(is_symmetric):
    """Codes 0 to 15 of one scale in each block of each row: nothing is left to round."""
    torch.manual_seed(0)
    zeros = torch.full((8, 2), 8) if is_symmetric else torch.randint(1, 15, (8, 2))
    scales = torch.tensor([0.5, 0.25]).expand(8, 2)
    codes = torch.randint(0, 16, (8, 64))
    codes[:, [0, 32]], codes[:, [1, 33]] = 0, 15
    weight = ((codes.unflatten(1, (2, 32)) - zeros[..., None]) * scales[..., None]).flatten(1)
    rounded = round_matrix(weight, torch.eye(64), 32, is_symmetric)
    torch.testing.assert_close(values_of(rounded), weight)


@pytest.mark.parametrize("block", [torch.zeros(8, 32), torch.full((8, 32), 1e-12), torch.full((8, 32), -3.0)])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_blocks_without_a_span_are_rounded_too(block, is_symmetric):
    scales, zeros = fit_grid(block, torch.ones(32), is_symmetric)
    assert scales.isfinite().all()
    assert (scales != 0).all()
    assert set(zeros.tolist()) <= set(range(1, 16))
    found = values_of(round_matrix(block, torch.eye(32), 32, is_symmetric))
    assert (found - block).abs().max() <= 0.02


def test_columns_that_no_row_uses_do_no_harm():
    weight, inputs = draw()
    inputs[:, 5] = 0
    found = values_of(round_matrix(weight, inputs.T @ inputs, 32, True))
    assert np.isfinite(found.numpy()).all()
    assert (found - weight).abs()[:, 5].max() < 1


SIZES = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
CONFIGS = {
    "one kind": LlamaConfig(**SIZES),
    "sliding windows": Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "convolutions": Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_layer_is_measured_on_the_states_that_the_whole_model_has_there(config, monkeypatch):
    """Rows of several lengths, some past the window; moments are those of an ordinary forward pass, in every layer."""
    rows = [[1, 5, 9, 4, 7, 8, 2, 11, 3], [2, 7, 3], [1, 5, 8, 3, 6, 6, 1, 2, 9]]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    linears = [
        part for layer in model.base_model.layers for part in layer.modules() if isinstance(part, torch.nn.Linear)
    ]
    expected = dict.fromkeys(linears, 0.0)

    def add(module, given):
        states = given[0].flatten(0, -2)
        expected[module] = expected[module] + states.T @ states

    hooks = [module.register_forward_pre_hook(add) for module in linears]
    with torch.inference_mode():
        for ids in rows:
            model(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    found = {}

    def keep(weight, moments, size, is_symmetric):
        found[weight] = moments
        return round_matrix(weight, moments, size, is_symmetric)

    monkeypatch.setattr(gptq, "round_matrix", keep)
    names = [name for name, _ in round_model(model, rows, 32, True)]
    assert len(names) == len(set(names)) == len(linears)
    for module in linears:
        torch.testing.assert_close(found[module.weight], expected[module], rtol=1e-4, atol=1e-4)
