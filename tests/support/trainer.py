"""A trainer of a tiny model in this process, for a look at what happens inside."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from lib.core.files import read_json, read_jsonl
from lib.data.tokenizer import load_tokenizer
from lib.evaluation import torch_scorer
from lib.models.loading import load_model
from lib.training import batching
from lib.training.adapter import build_lora_model
from lib.training.trainer import AdapterTrainer, build_adapter_trainer
from support.training import EVALUATE, FINETUNE


class Taught:
    """A trainer of a tiny model in this process, with what it was made of."""

    def __init__(self, base: Path, corpus: Path, work: Path, dtype: torch.dtype = torch.float32, **changes: Any):
        self.settings = {**FINETUNE, "lora_dropout": 0.0, **changes}
        self.tokenizer, self.template = load_tokenizer(base), read_json(corpus / "template.json")
        self.rows = {name: list(read_jsonl(corpus / f"{name}.jsonl")) for name in ("train", "validation")}
        self.encoded = {
            name: batching.encode_rows(self.tokenizer, rows, loss="completion", max_length=512)
            for name, rows in self.rows.items()
        }
        set_seed(0)
        self.model = build_lora_model(load_model(base, dtype), self.settings)
        self.work = work

    def trainer(self, measure: Any = None, *callbacks: TrainerCallback) -> AdapterTrainer:
        classes = [row["label"] for row in self.rows["train"]]
        result = build_adapter_trainer(
            *(self.model, self.encoded, self.settings),
            **{"seed": 0, "work": self.work, "pad_id": 2, "measure": measure, "classes": classes},
        )
        for callback in callbacks:
            result.add_callback(callback)
        return result

    def task_quality(self) -> Any:
        made_of = {"tokenizer": self.tokenizer, "template": self.template, "rows": self.rows["validation"]}
        return partial(torch_scorer.measure_task_quality, **made_of, evaluate=EVALUATE)

    def predictions(self, model: Any) -> list[dict[str, Any]]:
        return torch_scorer.score_labels(model, self.tokenizer, self.template, self.rows["validation"], 8)


class Weights(TrainerCallback):
    """The trainable weights behind each step."""

    def __init__(self) -> None:
        self.behind: dict[int, dict[str, torch.Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.behind[state.global_step] = trainable(given["model"])


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in model.named_parameters() if part.requires_grad}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
