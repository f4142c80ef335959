"""Files inside packages: the right one, checked, and one clear line for whatever is wrong.

pip runs for real, on wheels and sdists that stand in a folder instead of an index.
"""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from lib.cli import UserError
from lib.packages import package_file

METADATA = "Metadata-Version: 2.1\nName: demo-data\nVersion: 1.0\n"


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


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


def make_sdist(folder: Path, files: dict[str, bytes]) -> str:
    """Write the sdist of demo-data 1.0, with a build backend of its own that leaves a mark when it runs."""
    mark = folder / "backend-ran"
    backend = (
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "def prepare_metadata_for_build_wheel(directory, config_settings=None):\n"
        "    info = pathlib.Path(directory) / 'demo_data-1.0.dist-info'\n"
        "    info.mkdir()\n"
        f"    (info / 'METADATA').write_text({METADATA!r})\n"
        "    return info.name\n"
    )
    build = "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    standard = {"PKG-INFO": METADATA.encode(), "pyproject.toml": build.encode(), "backend.py": backend.encode()}
    path = folder / "demo_data-1.0.tar.gz"
    path.write_bytes(tar_gz({f"demo_data-1.0/{name}": content for name, content in {**standard, **files}.items()}))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_hash_chooses_between_wheel_and_sdist(shelf, tmp_path):
    wheel = make_wheel(shelf, {"demo/a.txt": b"from the wheel"})
    sdist = make_sdist(shelf, {"data/a.txt": b"from the sdist"})
    assert package_file("demo-data", "1.0", wheel, "demo/a.txt", tmp_path / "w").read_bytes() == b"from the wheel"
    found = package_file("demo-data", "1.0", sdist, "demo_data-1.0/data/a.txt", tmp_path / "s")
    assert found == tmp_path / "s" / "a.txt"
    assert found.read_bytes() == b"from the sdist"
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["a.txt"]  # no scratch left


def test_an_archive_inside_the_package_is_reached_into(shelf, tmp_path):
    inner = tar_gz({"in/rows.tsv": b"1\t2\n"})
    sha256 = make_wheel(shelf, {"demo/more.tar.gz": inner})
    assert package_file("demo-data", "1.0", sha256, "demo/more.tar.gz!in/rows.tsv", tmp_path).read_bytes() == b"1\t2\n"


def test_nothing_of_a_package_with_another_hash_is_run(shelf, tmp_path):
    make_sdist(shelf, {"data/a.txt": b"a"})
    with pytest.raises(UserError, match=r"demo-data 1\.0 has no file with sha256 0{64} .*do not use it"):
        package_file("demo-data", "1.0", "0" * 64, "demo_data-1.0/data/a.txt", tmp_path / "out")
    assert not (shelf / "backend-ran").exists()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "version", "file", "message"),
    [
        ("demo-data", "2.0", "demo/a.txt", r"no package demo-data 2\.0; existing versions end with 1\.0"),
        ("demo-date", "1.0", "demo/a.txt", r"no package demo-date 1\.0; check its name"),
        ("demo-data", "1.0", "demo/b.txt", r"no file demo/b\.txt in package demo-data 1\.0; .* demo/a\.txt"),
        ("demo-data", "1.0", "demo/a.txt!x", r"demo/a\.txt is not a zip or tar archive"),
        ("demo-data", "1.0", "demo/../../a.txt", "not a path inside a package"),
        ("demo-data", "1.0", "/etc/passwd", "not a path inside a package"),
        ("demo-data --index-url http://x", "1.0", "a", "not a package name"),
        ("demo-data", "1.0\n--pre", "a", "not a package name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(shelf, tmp_path, name, version, file, message):
    sha256 = make_wheel(shelf, {"demo/a.txt": b"a"})
    with pytest.raises(UserError, match=message) as caught:
        package_file(name, version, sha256, file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_index_out_of_reach_is_not_called_an_unknown_package(shelf, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UserError, match="out of reach"):
        package_file("demo-data", "1.0", "0" * 64, "demo/a.txt", tmp_path)


def test_a_link_in_an_archive_leads_nowhere(shelf, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    sha256 = make_wheel(shelf, {"demo/evil.tar.gz": buffer.getvalue()})
    with pytest.raises(UserError, match="no file passwd"):
        package_file("demo-data", "1.0", sha256, "demo/evil.tar.gz!passwd", tmp_path)


def test_tweets_are_labelled_at_half_a_point():
    from fetch_tweets import tweet

    assert tweet("7\t0.5\tA\ttab &amp; more") == {"id": "7", "text": "A\ttab &amp; more", "sentiment": "positive"}
    assert [tweet(f"1\t{rating}\tx")["sentiment"] for rating in ("-0.5", "-0.49", "0.49", "2")] == [
        "negative",
        "neutral",
        "neutral",
        "positive",
    ]
