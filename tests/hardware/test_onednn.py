"""Products by oneDNN: those of PyTorch, with a gradient for the inputs, and PyTorch's own where oneDNN is missing."""

import os
from types import SimpleNamespace

import pytest
import torch

from lib.hardware import onednn
from lib.hardware.onednn import multiply, use_onednn
from lib.models.loading import load_model


@pytest.mark.parametrize("bias", [None, torch.arange(24.0)])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (3, 5, 40)])
def test_a_product_is_that_of_pytorch(shape, by_columns, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(24, 40)
    expected = torch.nn.functional.linear(x, weight, bias)
    weight = weight.t().contiguous().t() if by_columns else weight
    torch.testing.assert_close(multiply(x, weight, bias), expected)


def test_without_the_operator_pytorch_multiplies(monkeypatch):
    x, weight = torch.randn(3, 40), torch.randn(24, 40)
    monkeypatch.setattr(onednn, "_has_kernel", lambda weight: False)
    assert torch.equal(multiply(x, weight), torch.nn.functional.linear(x, weight))


def test_a_model_gives_the_same_logits_and_gradients_and_its_weights_stay(tiny_llama):
    """Also of a head that is the embeddings: their rows are looked up and stay where they are."""
    ids = torch.tensor([[1, 5, 9, 4]])
    plain, quick = (load_model(tiny_llama).requires_grad_(False) for _ in range(2))
    assert use_onednn(quick) == 15, "seven in each of two layers, and the head"
    for (name, old), new in zip(plain.named_parameters(), quick.parameters(), strict=True):
        assert torch.equal(old, new), name
    results = []
    for model in (plain, quick):
        states = model.get_input_embeddings()(ids).requires_grad_()
        logits = model(inputs_embeds=states).logits
        logits.square().sum().backward()
        results.append((logits, states.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert quick.get_input_embeddings().weight.is_contiguous()
    assert not quick.model.layers[0].mlp.up_proj.weight.is_contiguous()


def test_what_is_trained_is_left_alone(tiny_llama):
    assert use_onednn(load_model(tiny_llama)) == 0


def test_few_kernels_are_kept_unless_somebody_asked_for_more(monkeypatch):
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "500")
    onednn.limit_kernel_cache()
    assert os.environ["LRU_CACHE_CAPACITY"] == "64"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "500"
    monkeypatch.delenv("LRU_CACHE_CAPACITY")


def test_steps_give_freed_memory_back(monkeypatch):
    from lib.training import callbacks

    trimmed = []
    monkeypatch.setattr(callbacks, "trim_memory", lambda: trimmed.append(True))
    for step in range(1, 31):
        callbacks.TrimMemory().on_step_end(None, SimpleNamespace(global_step=step), None)
    assert len(trimmed) == 3
