import os

import pytest

from lib.core.cli import UserError
from lib.core.paths import check_bare_name, check_model_folder, check_name, check_plain_files, resolve_below
from support.hostile_names import HOSTILE_NAMES


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_hostile_name_is_one_line_that_says_where_it_stands(name):
    with pytest.raises(UserError) as caught:
        check_name(name, at="index.json", line=3)
    line = str(caught.value)
    assert line.startswith("index.json:3: names the file ")
    assert line.isprintable()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "onnx/model.onnx.data", "Ünï côde (1).txt", "-rf", "...", "a..b"]
)
def test_ordinary_names_are_admitted(name):
    assert check_name(name, at="index.json") == name


def test_a_bare_name_has_no_folder():
    assert check_bare_name("a.safetensors", at="index.json") == "a.safetensors"
    with pytest.raises(UserError, match="in a folder"):
        check_bare_name("a/b.safetensors", at="index.json")


def test_no_part_of_a_path_below_a_folder_is_a_link(tmp_path):
    (tmp_path / "outside").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="link/file is a link"):
        resolve_below(folder, "link/file", at="index.json")
    (tmp_path / "named").symlink_to(folder)  # by a person
    assert resolve_below(tmp_path / "named", "file", at="index.json") == tmp_path / "named/file"


@pytest.mark.parametrize("check", [check_plain_files, check_model_folder])
def test_links_and_pipes_in_a_folder_are_refused(tmp_path, check):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file").write_text("x")
    check(tmp_path)
    (tmp_path / "deep/link").symlink_to("file")
    with pytest.raises(UserError, match="'deep/link' is a link"):
        check(tmp_path)
    (tmp_path / "deep/link").unlink()
    os.mkfifo(tmp_path / "deep/pipe")
    with pytest.raises(UserError, match="'deep/pipe' is neither a file nor a folder"):
        check(tmp_path)


def test_a_snapshot_of_the_hub_cache_is_read_and_nothing_beside_its_blobs(tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b/blobs"
    blobs.mkdir()
    (blobs / "4567").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/4567")
    check_model_folder(snapshot)
    for target in ("../../../secret", "../../blobs/missing", "../../blobs"):
        (tmp_path / "secret").write_text("secret")
        link = snapshot / "generation_config.json"
        link.symlink_to(target)
        with pytest.raises(UserError, match="is a link"):
            check_model_folder(snapshot)
        link.unlink()
    check_plain = pytest.raises(UserError, match="is a link")
    with check_plain:
        check_plain_files(snapshot)
