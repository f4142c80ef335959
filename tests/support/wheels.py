"""Python packages as an index has them."""

import hashlib
import zipfile
from pathlib import Path

METADATA = "Metadata-Version: 2.1\nName: demo-data\nVersion: 1.0\n"


def make_wheel(folder: Path, files: dict[str, bytes]) -> str:
    """Write the wheel of demo-data 1.0; returns its sha256."""
    path = folder / "demo_data-1.0-py3-none-any.whl"
    info = "demo_data-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()
