"""Rules of the workflow as their files have them: text, script, environments."""

import re
from pathlib import Path

import yaml

from support.paths import ROOT

TEXT = "\n".join(path.read_text() for path in [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))])
RULES = re.findall(r"^rule (\w+):", TEXT, flags=re.MULTILINE)
RULE_SCRIPTS = [name for name in RULES if name not in ("all", "evidence")]


def rule_text(name: str) -> str:
    start = TEXT.index(f"\nrule {name}:")
    end = TEXT.find("\nrule ", start + 1)
    return TEXT[start : end if end > 0 else None]


def environments(name: str) -> list[Path]:
    """The environments of a rule: the second one where it may be given a GPU."""
    text = rule_text(name)
    if fixed := re.search(r'"../envs/(\w+)\.yaml"', text):
        return [ROOT / "envs" / f"{fixed[1]}.yaml"]
    chosen = re.search(rf'environment\("(\w+)", "{name}"\)', text)
    assert chosen, f"{name} names no environment, or another rule's"
    return [ROOT / "envs" / folder / f"{chosen[1]}.yaml" for folder in ("", "cuda")]


def pip_lines(environment: Path) -> list[str]:
    return yaml.safe_load(environment.read_text())["dependencies"][-1]["pip"]
