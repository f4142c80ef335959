"""Models as MLflow packs them, seen as the flat folder that every other model comes in.

Layouts (azureml-assets' model_selector.py, MLflow's transformers flavour): `hftransformers` and `hftransformersv2` keep
`model`, `config` and `tokenizer` below their `model_data`; `transformers` keeps `model` and `components/tokenizer`.
Some have all of it in the folder of the model. MLflow itself is not needed and no code of a model is run.
"""

from pathlib import Path
from typing import Any

from lib.core.cli import UserError, fail
from lib.core.paths import resolve_below
from lib.core.yaml_files import load_yaml

_PACKED = ("hftransformersv2", "hftransformers")


def find_model_root(fetched: Path, scratch: Path) -> Path:
    """Return the folder that holds the model, however deep a job or a download has put it; names in it are the same
    then.

    fetched: a folder, or the model as one file. scratch: an empty folder for a link to that.
    """
    if fetched.is_file():
        (scratch / fetched.name).symlink_to(fetched.resolve())
        return scratch
    places = _candidates(fetched)
    packed = (place for place in places if (place / "MLmodel").is_file())
    return next(packed, next((place for place in places if _has_weights(place)), fetched))


def flatten_model_folder(root: Path, scratch: Path, label: str) -> Path:
    """Return the folder with config, tokenizer and weights of a model that was packed by MLflow, or is in no package.

    root: as `find_model_root` finds it. scratch: an empty folder for links to the files, where they lie in several.
    label: how messages name the model. Raises `UserError` when the package holds no such model.
    """
    if not (root / "MLmodel").is_file():
        return root
    parts = [part for part in _parts(root, label) if part.is_dir()]
    if not parts:
        fail("its MLmodel names folders that are not there", "fetch the whole model", at=label)
    for part in parts:  # the model's own files go last, so they win
        for file in part.iterdir():
            if file.is_file():
                link = scratch / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file.resolve())
    return scratch


def _candidates(folder: Path) -> list[Path]:
    """Return the folder and those in it: a download puts the model into a folder of its name."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    deeper = sorted(path for place in inside for path in place.iterdir() if path.is_dir())
    return [folder, *inside, *deeper]


def _has_weights(folder: Path) -> bool:
    return any((*folder.glob("*.safetensors"), *folder.glob("*.gguf")))


def _parts(root: Path, label: str) -> list[Path]:
    """Return the folders of the package that hold config, tokenizer and model, in this order."""
    flavors = _flavors(root / "MLmodel", label)
    for name in _PACKED:
        if name in flavors:
            data = str(flavors[name].get("model_data") or "data")
            return [resolve_below(root, f"{data}/{part}", at=label) for part in ("config", "tokenizer", "model")]
    if "transformers" in flavors:
        model = str(flavors["transformers"].get("model_binary") or "model")
        return [resolve_below(root, path, at=label) for path in ("components/tokenizer", model)]
    fail(
        f"its MLmodel has only {', '.join(flavors) or 'no flavor'}, which is code of its own",
        "choose a model with the flavor transformers or hftransformersv2",
        at=label,
    )


def _flavors(file: Path, label: str) -> dict[str, dict[str, Any]]:
    try:
        flavors = load_yaml(file)["flavors"]
        return {str(name): dict(value or {}) for name, value in flavors.items()}
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        fail("its MLmodel cannot be read", "choose another version of it", at=label)
