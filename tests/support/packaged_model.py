"""A packaged model, made of a build and of a made-up selection and summary."""

import argparse
from pathlib import Path

from lib.core.files import write_json
from lib.core.layout import Layout
from lib.provenance.manifests import build_manifest_path

PACKAGE_SETTINGS = {
    "task": "classification",
    "base_model": {"hub": {"id": "someone/tiny", "revision": "0" * 40}},
    "finetune": {"r": 8, "learning_rate": 1e-3},
    "runs": {"lora": {"seed": 0, "swept": {"r": 4}}},
    "versions": {},
}
SELECTION = {
    "run": "lora",
    "variant": "int4",
    "reason": "macro-F1 0.900 on 5 validation rows, the best",
    "rejected": [{"run": "lora", "variant": "big", "reason": "300.0 MB is above selection.max_size_mb 200"}],
    "metric": "macro_f1",
}
SCORED = {"n": 220, "accuracy": 0.75, "accuracy_ci95": [0.69, 0.81]}
SUMMARY = {
    "verdict": {"ship": False, "text": "Do not ship it yet: 220 rows do not show it."},
    "tokenizer": {"rows": 1200, "differ": 7, "error": None, "examples": [], "asked_otherwise": 0},
    "model": {"test": SCORED},
    "baselines": {"tfidf_logreg": {"test": SCORED | {"accuracy": 0.7}}},
    "base": {"test": SCORED | {"accuracy": 0.3, "accuracy_ci95": None}},
}


def package(folder: Path, base: Path, corpus: Path, selection: dict = SELECTION, **settings) -> Path:
    """Assemble and package the selected build, without the test scores between the two."""
    import assemble_model
    import package_model

    write_json(folder / "selection.json", selection)
    write_json(folder / "summary.json", SUMMARY)
    assemble_model.main(
        argparse.Namespace(
            settings=PACKAGE_SETTINGS | settings,
            selection=folder / "selection.json",
            results=Layout(folder),
            template=corpus / "template.json",
            temperature=None,
            base=base,
            timings=folder / "timings",
            output=folder / "assembled",
        )
    )
    package_model.main(
        argparse.Namespace(
            assembled=folder / "assembled",
            selection=folder / "selection.json",
            base_manifest=build_manifest_path(base),
            summary=folder / "summary.json",
            output=folder / "model",
        )
    )
    return folder / "model"
