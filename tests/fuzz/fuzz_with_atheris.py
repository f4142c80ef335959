"""Have atheris look for bytes that break a target, guided by the lines that they reach: `make fuzz-atheris`.

make fuzz-atheris ARGS="rows.csv -max_total_time=600"
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["lib", "targets"]):
    from targets import TARGETS


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"error: name a target first; there is {', '.join(TARGETS)}")
    target = TARGETS[arguments[0]]
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (corpus / "example").write_bytes(target.example)
    atheris.Setup([sys.argv[0], *arguments[1:], str(corpus)], target.call)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
