"""Where the project's files lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
GOLDEN = ROOT / "tests" / "golden"
