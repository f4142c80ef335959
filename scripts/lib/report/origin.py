"""From which bytes? And from which settings."""

from collections.abc import Iterable
from typing import Any

from lib.core.files import dump_canonical_json, hash_file
from lib.provenance.manifests import load_manifest
from lib.report.evidence import Evidence
from lib.report.page import Block, Section, Table


def show_origin(evidence: Evidence) -> Section:
    rows = []
    for path in evidence.manifests:
        manifest = load_manifest(path)
        inputs = ", ".join(sorted(manifest["inputs"])) or "–"
        rows.append((path.as_posix(), hash_file(path), f"{len(manifest['files'])} files", inputs))
    answer = f"From the manifest {rows[-1][1][:12]}… of the packaged model back to base weights and rows, hash by hash."
    text = (
        "Each manifest below holds the sha256 of its files and of the manifests that they were made from, so that"
        " anybody can check that this model came from those rows and those weights."
    )
    settings = [
        (key, value if isinstance(value, str) else dump_canonical_json(value))
        for key, value in _flat(evidence.settings)
    ]
    blocks: list[Block] = [
        text,
        Table(
            "Manifests",
            ("Manifest", "sha256", "Covers", "Made from"),
            rows,
            style="wide code",
            folded=evidence.many,
        ),
        Table("The whole configuration, defaults included", ("Key", "Value"), settings, style="wide code", folded=True),
        Table("Run card: by what, where and when", ("", "Value"), _card(evidence.card), style="wide code", folded=True),
    ]
    return Section("bytes", "From which bytes?", answer, blocks)


def _card(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Return time, commit, machine and versions; settings and manifests have tables of their own."""
    shown = {key: card[key] for key in ("made", "code", "lock_sha256", "machine", "versions")}
    return [(key, value if isinstance(value, str) else dump_canonical_json(value)) for key, value in _flat(shown)]


def _flat(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield f"{prefix}{key}", inner
