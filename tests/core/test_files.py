"""Files are whole or absent, and errors are one line with exit code 1."""

import copy
import json
import os
import pickle
import re
import time

import pytest

from lib.core.cli import UserError
from lib.core.failures import find_place
from lib.core.files import (
    dump_canonical_json,
    publish_directory,
    publish_file,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from lib.provenance.manifests import build_manifest_path, read_manifest, write_manifest
from support.python_code import script_with


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"old": True})
    try:
        with publish_file(tmp_path / "a.json") as partial:
            partial.write_text("half")
            raise RuntimeError
    except RuntimeError:
        pass
    assert read_json(tmp_path / "a.json") == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_directory_leaves_the_old_one_and_nothing_else(tmp_path):
    for content in ("old", "half"):
        try:
            with publish_directory(tmp_path / "model") as partial:
                (partial / "weights").write_text(content)
                if content == "half":
                    raise RuntimeError
        except RuntimeError:
            pass
    assert (tmp_path / "model/weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_removed_and_an_old_manifest_too(tmp_path):
    (tmp_path / "model.partial.1").mkdir()
    (tmp_path / "model.manifest.json").write_text("{}")
    with publish_directory(tmp_path / "model") as partial:
        (partial / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_published_files_can_be_read_by_others(tmp_path):
    with publish_directory(tmp_path / "model") as partial:
        (partial / "weights").touch(mode=0o600)
    assert (tmp_path / "model/weights").stat().st_mode & 0o777 == 0o644


def test_a_manifest_is_equal_for_equal_bytes_and_ignores_snakemakes_time_stamp(tmp_path):
    texts = []
    for name in ("one", "two"):
        folder = tmp_path / name / "model"
        with publish_directory(folder) as partial:
            (partial / "weights").write_text("bytes")
        (folder / ".snakemake_timestamp").write_text(name)
        write_manifest(folder, inputs={}, settings={"seed": 0})
        texts.append(build_manifest_path(folder).read_text())
    assert texts[0] == texts[1]
    (tmp_path / "one/model/weights").unlink()
    with pytest.raises(UserError, match="weights is missing"):
        read_manifest(tmp_path / "one/model")


def test_canonical_json_tells_swapped_values_apart_and_ignores_the_order_of_keys():
    assert dump_canonical_json({"r": 16, "alpha": 32}) == dump_canonical_json({"alpha": 32, "r": 16})
    assert dump_canonical_json({"r": 16, "alpha": 32}) != dump_canonical_json({"r": 32, "alpha": 16})


def test_a_cut_jsonl_file_is_named_with_its_line(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}, {"id": 2}])
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text()[:-4])
    with pytest.raises(UserError, match=r"rows.jsonl:2: not JSON"):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_a_persons_mistake_is_one_line_on_stderr_and_in_the_log(tmp_path):
    log = tmp_path / "logs/x.txt"
    done = script_with(
        "def main(args):\n    print('library noise')\n    fail('it is wrong', 'mend it', at='a', line=3)",
        "--log",
        str(log),
    )
    assert done.returncode == 1
    assert done.stderr == "error: a:3: it is wrong; mend it\n"
    assert done.stdout == ""
    assert log.read_text().splitlines() == ["library noise", "error: a:3: it is wrong; mend it"]


def test_the_log_of_a_run_that_went_well_ends_with_its_times(tmp_path):
    log = tmp_path / "x.txt"
    before = time.time()
    done = script_with(
        "def main(args):\n    import time; time.sleep(0.4); report_loaded(); time.sleep(0.2); print('library noise')",
        "--log",
        str(log),
    )
    after = time.time()
    assert done.stderr == ""
    said, times = log.read_text().splitlines()
    found = re.fullmatch(r"time: started (\d+\.\d\d) start_up (\d+\.\d\d) work (\d+\.\d\d)", times)
    assert said == "library noise"
    assert found, times
    started, start_up, work = map(float, found.groups())
    assert before - 0.03 <= started
    assert start_up >= 0.4
    assert work >= 0.2
    assert started + start_up + work <= after + 0.03


def test_our_own_fault_is_one_line_and_its_traceback_in_the_log(tmp_path):
    log = tmp_path / "x.txt"
    done = script_with("def main(args):\n    {}['key']", "--log", str(log))
    assert done.returncode == 1
    assert done.stderr.startswith("error: -c: unexpected KeyError: 'key'; see ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" in log.read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    done = script_with("def main(args):\n    with open('/dev/full', 'w') as file: file.write('x' * 100000)")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in done.stderr.splitlines()[-1]


def test_settings_may_come_from_a_file(tmp_path, run_script):
    (tmp_path / "s.json").write_text(json.dumps({"near_duplicates": 0.8, "leakage": "error"}))
    for name in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [])
    done = run_script("check_leakage", "--settings", "[1]", check=False)
    assert done.returncode == 2
    assert "must be a JSON object" in done.stderr
    done = run_script("check_leakage", "--settings", f"@{tmp_path}/s.json", check=False)
    assert "--settings" not in done.stderr.splitlines()[-1].partition("required")[2].partition("--train")[0]


def test_a_refused_file_is_named_as_it_would_be_called(tmp_path):
    error = PermissionError(13, "Permission denied", str(tmp_path / "a.json.partial.123"))
    assert find_place(error) == str(tmp_path / "a.json")
    assert find_place(OSError()) == ""


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "a number with too many digits"),
        ('"\\ud800"', "text with half of a surrogate pair"),
    ],
)
def test_json_that_python_reads_and_nobody_can_use_is_one_line(tmp_path, content, what):
    (tmp_path / "one.json").write_text(content)
    with pytest.raises(UserError, match=f"one.json: not JSON: {what}"):
        read_json(tmp_path / "one.json")
    with pytest.raises(UserError, match=f"one.json:1: not JSON: {what}"):
        list(read_jsonl(tmp_path / "one.json"))


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [-Infinity]}', '{"a": 1, "a": 2}'])
def test_json_that_other_programs_read_in_another_way_is_read_unless_the_reader_is_strict(tmp_path, text):
    (tmp_path / "one.json").write_text(text)
    assert "a" in read_json(tmp_path / "one.json")
    with pytest.raises(UserError, match="one.json: not JSON: .* (is not a number|is listed twice)"):
        read_json(tmp_path / "one.json", strict=True)


def test_a_file_that_lies_in_the_place_of_another_is_told_by_its_name(tmp_path):
    (tmp_path / "audit.json").write_text('{"rows": {"kept": 1}}')
    found = read_json(tmp_path / "audit.json")
    assert found == {"rows": {"kept": 1}}
    assert copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found
    assert found.get("verdict") is None
    for ask in (lambda: found["verdict"], lambda: found["rows"]["rejected"]):
        with pytest.raises(UserError, match=r"audit\.json: it has no '(verdict|rejected)'"):
            ask()


@pytest.mark.parametrize("what", ["link to nothing", "link to a folder", "pipe", "file", "folder"])
@pytest.mark.parametrize("name", ["made", "made.partial.7", "made.manifest.json"])
def test_what_lies_where_a_folder_is_written_makes_way_and_no_link_is_followed(tmp_path, what, name):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/file").write_text("a person's")
    place = tmp_path / name
    {
        "link to nothing": lambda: place.symlink_to("nowhere"),
        "link to a folder": lambda: place.symlink_to(tmp_path / "own"),
        "pipe": lambda: os.mkfifo(place),
        "file": lambda: place.write_text("old"),
        "folder": place.mkdir,
    }[what]()
    with publish_directory(tmp_path / "made") as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "own"]
    assert (tmp_path / "own/file").is_file()


def test_a_folder_where_a_file_is_written_is_told_and_stays(tmp_path):
    (tmp_path / "made.json/own").mkdir(parents=True)
    with pytest.raises(UserError, match="a folder lies where this file is written"):
        write_json(tmp_path / "made.json", {})
    assert (tmp_path / "made.json/own").is_dir()
