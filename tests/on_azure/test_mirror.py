"""A training whose disk goes with its job: progress in the storage, and one holder at a time."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from azure.storage.blob import BlobLeaseClient

from lib.azure import blobs, checkpoint_mirror
from lib.azure.checkpoint_mirror import mirror_checkpoints
from lib.core.checksums import find_fault, write_checksums
from lib.core.cli import Stopped, UserError
from support.training import adapter_hash, make_corpus, train_command

from .azurite import environment_of_jobs
from .conftest import write_files

pytestmark = [pytest.mark.azure, pytest.mark.usefixtures("in_storage")]


def checkpoint(work: Path, step: int, content: str = "weights", whole: bool = True) -> Path:
    folder = write_files(work / f"checkpoint-{step}", **{"model.safetensors": content})
    if whole:
        write_checksums(folder)
    return folder


def result(work: Path) -> Path:
    folder = write_files(work / "result", **{"training.json": "{}"})
    write_checksums(folder)
    return folder


def test_progress_is_restored_where_there_is_none(container, tmp_path):
    url = f"az://{container}/progress/key"
    with mirror_checkpoints(url, tmp_path / "a") as one:
        checkpoint(tmp_path / "a", 5)
        one.save()
        checkpoint(tmp_path / "a", 10, "better")
        checkpoint(tmp_path / "a", 15, whole=False)
        one.save()
    with mirror_checkpoints(url, tmp_path / "b"):
        assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["checkpoint-10", "checkpoint-5"], (
            "the best one may not be the last"
        )
        assert (tmp_path / "b/checkpoint-10/model.safetensors").read_text() == "better"


def test_a_checkpoint_that_was_not_wholly_copied_does_not_count(azurite, container, tmp_path):
    with mirror_checkpoints(f"az://{container}/progress/key", tmp_path / "a") as one:
        checkpoint(tmp_path / "a", 5)
        one.save()
    azurite.put(container, {"progress/key/checkpoint-10/model": b"2"})
    with mirror_checkpoints(f"az://{container}/progress/key", tmp_path / "b"):
        assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["checkpoint-5"]


@pytest.mark.parametrize("content", [b"Weights", b"weight", None], ids=["changed", "cut", "gone"])
@pytest.mark.parametrize("make", [result, lambda work: checkpoint(work, 10)], ids=["result", "checkpoint"])
def test_progress_that_has_other_bytes_in_the_storage_is_not_used(azurite, container, tmp_path, capfd, make, content):
    url = f"az://{container}/progress/key"
    with mirror_checkpoints(url, tmp_path / "a") as one:
        folder = make(tmp_path / "a")
        name = "training.json" if folder.name == "result" else "model.safetensors"
        one.save()
    blob = azurite.client().get_blob_client(container, f"progress/key/{folder.name}/{name}")
    blob.delete_blob() if content is None else blob.upload_blob(content, overwrite=True)
    with mirror_checkpoints(url, tmp_path / "b") as other:
        assert f"{folder.name} of the storage is not used: {name} " in capfd.readouterr().err
        assert list((tmp_path / "b").iterdir()) == []
        assert set(azurite.blobs(container, "progress/key/")) == {"progress/key/lock"}
        make(tmp_path / "b")
        other.save()
    with mirror_checkpoints(url, tmp_path / "c"):
        assert find_fault(tmp_path / "c" / folder.name) is None, "what was made again is kept"


def test_progress_that_is_damaged_here_comes_from_the_storage(container, tmp_path):
    url = f"az://{container}/progress/key"
    with mirror_checkpoints(url, tmp_path) as one:
        folder = checkpoint(tmp_path, 10)
        one.save()
    (folder / "model.safetensors").write_text("Weights")
    with mirror_checkpoints(url, tmp_path):
        assert (folder / "model.safetensors").read_text() == "weights"


def test_old_checkpoints_go(azurite, container, tmp_path):
    with mirror_checkpoints(f"az://{container}/progress/key", tmp_path) as one:
        old = checkpoint(tmp_path, 5)
        one.save()
        checkpoint(tmp_path, 10)
        shutil.rmtree(old)
        one.save()
        assert {name.split("/")[2] for name in azurite.blobs(container, "progress/key/")} == {"lock", "checkpoint-10"}
        shutil.rmtree(tmp_path / "checkpoint-10")
        result(tmp_path)
        one.save()
        assert set(azurite.blobs(container, "progress/key/")) == {
            "progress/key/lock",
            "progress/key/result/complete.json",
            "progress/key/result/training.json",
        }


def test_a_second_one_waits_until_the_first_has_ended(container, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(checkpoint_mirror, "_POLL", 0.1)
    monkeypatch.setenv("AZUREML_RUN_ID", "the-first-job")
    url, order = f"az://{container}/progress/key", []

    def second() -> None:
        with mirror_checkpoints(url, tmp_path / "b"):
            order.append("second")
            assert (tmp_path / "b/result/training.json").is_file()

    with mirror_checkpoints(url, tmp_path / "a") as one:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1)
        order.append("first")
        result(tmp_path / "a")
        one.save()
    thread.join(30)
    assert order == ["first", "second"]
    assert "waiting for it: the-first-job" in capfd.readouterr().err


def test_waiting_ends_with_the_time(container, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_mirror, "_POLL", 0.1)
    url = f"az://{container}/progress/key"
    with (
        mirror_checkpoints(url, tmp_path / "a"),
        pytest.raises(Stopped, match="the time is up"),
        mirror_checkpoints(url, tmp_path / "b", time.monotonic()),
    ):
        pass


def test_who_lost_the_lease_writes_nothing_more(azurite, container, tmp_path):
    """As after a node was paused for longer than a lease: another one has taken over."""
    lock = azurite.client().get_blob_client(container, "progress/key/lock")
    with mirror_checkpoints(f"az://{container}/progress/key", tmp_path) as one:
        BlobLeaseClient(lock).break_lease(lease_break_period=0)
        lock.acquire_lease(60)
        checkpoint(tmp_path, 5)
        with pytest.raises(Stopped, match="another process has taken over"):
            one.save()
    assert set(azurite.blobs(container, "progress/key/")) == {"progress/key/lock"}


def test_a_lease_is_kept_alive(container, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_mirror, "_LEASE", 15)  # the shortest that Azure has
    monkeypatch.setattr(checkpoint_mirror, "_RENEW", 3.0)
    monkeypatch.setattr(checkpoint_mirror, "_POLL", 0.5)
    url = f"az://{container}/progress/key"
    with mirror_checkpoints(url, tmp_path / "a"):
        end = time.monotonic() + 20
        with pytest.raises(Stopped), mirror_checkpoints(url, tmp_path / "b", end):
            pass
        assert time.monotonic() > end


def test_the_lease_of_one_that_died_is_free_again(azurite, container, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_mirror, "_POLL", 0.5)
    script = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from lib.azure import checkpoint_mirror
checkpoint_mirror._LEASE = 15
with checkpoint_mirror.mirror_checkpoints("az://{container}/progress/key", Path({str(tmp_path / "a")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment_of_jobs(azurite)
    )
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with mirror_checkpoints(f"az://{container}/progress/key", tmp_path / "b", time.monotonic() + 60):
        pass


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("az://only-a-container", "is not az://CONTAINER/PATH"),
        ("s3://bucket/path", "is not az://CONTAINER/PATH"),
        ("az://no-such-container/progress/key", "the storage has no such container"),
    ],
)
def test_wrong_places_are_told(tmp_path, url, said):
    with pytest.raises(UserError, match=said), mirror_checkpoints(url, tmp_path):
        pass


def test_no_account(monkeypatch):
    monkeypatch.delenv("AZURITE_CONNECTION_STRING")
    monkeypatch.delenv(blobs.ACCOUNT)
    with pytest.raises(UserError, match=f"no storage account is named; set {blobs.ACCOUNT}"):
        blobs.place("az://container/path")


def test_a_killed_training_goes_on_on_another_machine(azurite, container, tiny_llama, tmp_path):
    """Its folder is lost with the machine; the adapter has the bytes of one that was not disturbed."""
    corpus = make_corpus(tiny_llama, tmp_path)

    def command(name: str, *more: str) -> list[str]:
        out = tmp_path / name
        out.mkdir()
        return [*train_command(tiny_llama, corpus, out, out / "work", num_train_epochs=8), *more]

    env = environment_of_jobs(azurite)
    mirrored_to = ("--mirror", f"az://{container}/progress")
    process = subprocess.Popen(command("first", *mirrored_to), env=env)
    deadline = time.monotonic() + 300
    while not any(name.endswith("complete.json") for name in azurite.blobs(container)):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    shutil.rmtree(tmp_path / "first")

    second = subprocess.run(command("second", *mirrored_to), env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "another process holds this adapter's progress" in second.stderr, "until the dead one's lease has ended"
    assert "resumed at step" in second.stderr
    subprocess.run(command("undisturbed"), env=env, check=True, capture_output=True)
    assert adapter_hash(tmp_path / "second") == adapter_hash(tmp_path / "undisturbed")
    third = subprocess.run(command("third", *mirrored_to), env=env, capture_output=True, text=True)
    assert "already trained" in third.stderr, "the result is kept as well"
    assert adapter_hash(tmp_path / "third") == adapter_hash(tmp_path / "second")


def test_a_blob_with_other_bytes_than_were_uploaded_is_refused(container, tmp_path):
    (tmp_path / "source").write_text("weights")
    folder = blobs.place(f"az://{container}/results")
    blobs.upload(tmp_path / "source", folder, "a", {"sha256": "0" * 64})
    with pytest.raises(UserError, match=f"^az://{container}/results/a: its bytes differ from what was uploaded"):
        blobs.download(folder, "a", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
