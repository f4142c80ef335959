"""What is promised about memory: a merge holds one matrix, and what cannot fit is refused before the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.core.cli import UserError
from lib.hardware.memory import measure_available_mb, require_memory
from support.paths import ROOT, SCRIPTS

GB = 10**9


def made_root(root: Path, group: str = "0::/", **files: object) -> Path:
    """A tree with `proc` and `sys` of a machine with 8 GB, 2 of them free, and 1 GB of swap."""
    meminfo = "MemTotal: 8000000 kB\nMemAvailable: 1953125 kB\nSwapFree: 976562 kB\nHugePages_Total: 0\n"
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/self/cgroup").write_text(f"3:cpu:/elsewhere\n{group}\n")
    for name, value in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_swap_counts_and_a_machine_without_limits_gives_what_is_available(tmp_path):
    assert measure_available_mb(made_root(tmp_path)) == pytest.approx(3000, abs=1)


@pytest.mark.parametrize(
    ("group", "folder"), [("0::/", ""), ("0::/job/step", "job"), ("0::/job/step", "job/step"), ("0::/of/the/host", "")]
)
def test_the_limit_of_a_group_or_of_one_above_it_counts_and_file_pages_are_free(tmp_path, group, folder):
    files = {"memory.max": GB, "memory.current": 900 * 10**6}
    stat = "anon 5\nactive_file 100000000\ninactive_file 200000000\nshmem 7"
    names = {f"./{folder}/{name}": value for name, value in {**files, "memory.stat": stat}.items()}
    assert measure_available_mb(made_root(tmp_path, group, **names)) == pytest.approx(400 + 1000, abs=1)


def test_limits_of_version_1_count_and_no_limit_is_none(tmp_path):
    files = {"memory.limit_in_bytes": GB, "memory.usage_in_bytes": GB // 2, "memory.stat": "total_active_file 0"}
    named = {f"memory/{name}": value for name, value in files.items()}
    assert measure_available_mb(made_root(tmp_path / "1", "4:memory:/x", **named)) == pytest.approx(500 + 1000, abs=1)
    free = {"memory.max": "max", "memory.current": 5, "memory.stat": ""}
    assert measure_available_mb(made_root(tmp_path / "2", **free)) == pytest.approx(3000, abs=1)


def test_a_system_that_does_not_tell_refuses_nothing(tmp_path):
    assert measure_available_mb(tmp_path) == float("inf")


def test_too_little_memory_is_one_line_with_both_figures():
    free = measure_available_mb()
    require_memory(free / 2, "build_onnx")
    with pytest.raises(UserError, match=r"^build_onnx: needs about \d+\.\d GB of memory, \d+\.\d GB are free; stop "):
        require_memory(3 * free, "build_onnx")


MAKE = """
import sys
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from lib.provenance.manifests import build_manifest_path, write_manifest
sys.path.insert(0, sys.argv[3])
from support.tiny_models import CHATML, tiny_tokenizer
folder, layers = Path(sys.argv[1]), int(sys.argv[2])
model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=layers,
                                     num_attention_heads=8, bos_token_id=1, eos_token_id=2, pad_token_id=2))
model.save_pretrained(folder / "base", max_shard_size="40MB")
names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
tiny_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], names, CHATML).save_pretrained(folder / "base")
write_manifest(folder / "base", inputs={}, settings={})
adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
for name, part in adapted.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(part, std=0.02)
adapted.save_pretrained(folder / "adapter")
write_manifest(folder / "adapter", inputs={"base": build_manifest_path(folder / "base")}, settings={})
(folder / "rows.jsonl").write_text('{"id": "1", "prompt": "What a lovely morning"}\\n')
"""


def peak_of_a_merge(folder: Path, layers: int) -> float:
    """MB, of the whole process."""
    subprocess.run([sys.executable, "-c", MAKE, folder, str(layers), ROOT / "tests"], cwd=SCRIPTS, check=True)
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "merge_adapter.py", "--settings", '{"into": "original", "versions": {}}', "--base", folder / "base",
         "--adapter", folder / "adapter", "--rows", folder / "rows.jsonl", "--merged", folder / "merged",
         "--threads", "1"]
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024 / 1e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_a_merge_takes_no_more_than_a_shard_and_a_matrix_whatever_the_model(tmp_path):
    small, whole = peak_of_a_merge(tmp_path / "small", 1), peak_of_a_merge(tmp_path / "whole", 9)
    files = [file.stat().st_size / 1e6 for file in (tmp_path / "whole/base").glob("*.safetensors")]
    assert len(files) >= 4
    matrix = 512 * 2048 * 4 / 1e6
    assert whole - small <= 1.3 * max(files) + matrix
    assert whole - small < sum(files) / 2


STEPS = """
import resource, sys, torch
from lib.hardware.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(8):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(1 << 24) for _ in range(4)]  # 64 MB each
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_training_step_takes_the_memory_that_the_step_before_left():
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", STEPS, way], cwd=SCRIPTS))
        for way in ("keep", "as it comes")
    }
    assert faults["keep"] < faults["as it comes"] / 10
