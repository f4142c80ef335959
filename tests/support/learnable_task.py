"""A task that a tiny model can learn: one word of a text decides its label, and one label begins another."""

import shutil
from pathlib import Path

from lib.provenance.manifests import write_manifest

WORDS = {"joy": "bread", "joyful": "party", "sadness": "dog"}
LABELS = list(WORDS)


def with_louder_logits(base: Path, folder: Path) -> Path:
    """A copy of a random model that adapters can teach: as made, no answer can get a logit above about 1."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(base, folder))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= 10
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    write_manifest(copy, inputs={}, settings={})
    return copy
