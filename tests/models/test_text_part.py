"""Multimodal checkpoints: the language model alone is taken, whole, and byte for byte."""

import json

import pytest
from models.families import FAMILIES, write_description, write_tiny_model

from lib.core.cli import UserError
from lib.models.safetensors_streaming import locate_weights
from lib.models.small_config import shrink_config
from support.fetching import fetch_path

MULTIMODAL = [family for family in FAMILIES if family.prefix and family.name != "gemma4"]


def make_checkpoint(family, tmp_path):
    from transformers import AutoConfig

    full = AutoConfig.from_pretrained(write_description(family, tmp_path / "description"))
    return write_tiny_model(family, tmp_path / "source", shrink_config(full.text_config))


def count_text(folder, prefix) -> int:
    return sum(
        one.elements
        for name, one in locate_weights(folder).items()
        if name.startswith((prefix, "lm_head", "language_model.lm_head"))
    )


@pytest.mark.parametrize("family", MULTIMODAL, ids=lambda family: family.name)
def test_the_text_part_is_taken_byte_for_byte_and_nothing_else(family, tmp_path):
    source = make_checkpoint(family, tmp_path)
    fetch_path(source, tmp_path / "base", count_text(source, family.prefix))
    config = json.loads((tmp_path / "base/config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM")
    assert "vision_config" not in config
    before = locate_weights(source)
    after = locate_weights(tmp_path / "base")
    assert not [name for name in after if "vision" in name or "visual" in name or "mtp" in name]
    for name, stored in after.items():
        theirs = (
            before.get(name) or before.get(name.replace("model.", family.prefix, 1)) or before[f"language_model.{name}"]
        )
        assert read_bytes(stored) == read_bytes(theirs), name
    assert (tmp_path / "base/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def read_bytes(stored) -> bytes:
    with open(stored.file, "rb") as file:
        file.seek(stored.start)
        return file.read(2 * stored.elements)  # bfloat16


def test_a_text_part_that_is_not_whole_is_refused(tmp_path):
    family = next(one for one in MULTIMODAL if one.name == "ministral3")
    source = make_checkpoint(family, tmp_path)
    whole = count_text(source, family.prefix)
    file = source / "model.safetensors"
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    content = load(file)
    content.pop(next(name for name in content if "layers.1.mlp.down_proj" in name))
    save(content, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"its tensors do not fit the model: 1 missing \(model\.layers\.1\.mlp\.down_proj"
    ):
        fetch_path(source, tmp_path / "base", whole)


def test_a_multimodal_model_without_a_text_model_of_its_own_says_so(tmp_path):
    family = next(one for one in MULTIMODAL if one.name == "ministral3")
    source = make_checkpoint(family, tmp_path)
    config = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "text_config": {"model_type": "qwen2_5_vl_text"},
        "vision_config": {},
    }
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError,
        match=r"it is multimodal \(model_type qwen2_5_vl\), and transformers has no model of its text part alone",
    ):
        fetch_path(source, tmp_path / "base", 1)
