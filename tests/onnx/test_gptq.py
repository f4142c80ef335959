"""GPTQ: what its arithmetic promises, on small matrices and models."""

import numpy as np
import pytest
import torch

from lib.models.loading import load_model
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


def test_a_layer_is_measured_on_the_states_that_the_whole_model_has_there(tiny_llama, monkeypatch):
    """Rows of several lengths; the moments of the second layer's inputs are those of an ordinary forward pass."""
    rows, kept = [[1, 5, 9, 4], [2, 7], [1, 5, 8, 3], [3, 3, 3, 9, 9]], {}
    model = load_model(tiny_llama)
    layer = model.model.layers[1].mlp.down_proj
    seen = []
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.inference_mode():
        for ids in rows:
            model(torch.tensor([ids]), use_cache=False)
    expected = sum(states.T @ states for states in seen)

    def keep(weight, moments, size, is_symmetric):
        kept[weight.shape] = moments
        return round_matrix(weight, moments, size, is_symmetric)

    monkeypatch.setattr(gptq, "round_matrix", keep)
    names = [name for name, _ in round_model(load_model(tiny_llama), rows, 32, True)]
    assert len(names) == len(set(names)) == 14
    assert names[-1] == "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(kept[layer.weight.shape], expected, rtol=1e-4, atol=1e-4)
