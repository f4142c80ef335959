"""The configuration: the only definition of what `config.yaml` may hold.

The Snakefile validates with it before the DAG is built; `examples/config.schema.json` (for editors)
is generated from it. Scripts never import it: each gets its own sections, resolved, as JSON.
What determines results stands here; how and where they are made stands in profiles.
"""

import difflib
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, field_validator, model_validator

from lib.config.sources import BaseModelSource, Data, Share
from lib.config.sweep import Run, expand_runs, expand_variants
from lib.config.variants import Count, Section, Variant
from lib.core.cli import UserError
from lib.data.templates import columns_of, parse_segments, placeholder, template_columns
from lib.evaluation.registry import METRICS, SELECTED_BY, find_metrics

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
_PART = "[A-Za-z0-9._][A-Za-z0-9._-]*"  # of a path; what begins with - would be an option
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]  # numpy and scikit-learn take no other
Tokens = Annotated[int, Field(ge=8, le=2**31 - 1)]
S = TypeVar("S", bound="Section")

RESULTS = rf"^/*{_PART}(/+{_PART})*/*$"


class Split(Section):
    """Validation chooses; test is scored once and decides the gate."""

    validation: Fraction = 0.1
    test: Fraction = 0.15

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave rows to train on (their sum is below 1)")
        return self


class Corpus(Section):
    """How a row becomes prompt and answer."""

    template: Literal["chat"] | None = None
    """chat: the tokenizer's own chat template around `user` (and `system`). Columns stand in braces: {text},
    {user.name}, {messages.0.content}; a name with a brace, quote, colon, ! or [ in quotes as well: {"PK [m]"}."""
    user: str | None = None
    system: str | None = None
    text_template: str | None = None
    """One text with the target as last placeholder; what stands before it is the prompt."""
    max_length: Tokens = 512
    """Tokens of prompt and answer together."""
    truncation: Literal["reject", "right", "left"] = "reject"
    """Rows that are longer are set aside, or their longest value loses its end (right) or start (left)."""

    @model_validator(mode="after")
    def _one_template(self) -> "Corpus":
        if (self.template is None) == (self.text_template is None):
            raise ValueError("give either template: chat (with user:) or text_template:")
        if self.template == "chat" and not self.user:
            raise ValueError("template: chat needs user: (the question, with the columns in braces)")
        if self.template is None and (self.user or self.system):
            raise ValueError("user: and system: belong to template: chat")
        for text in (self.user, self.system, self.text_template):
            if text:
                _checked(parse_segments, text)
        return self


class Finetune(Section):
    """How the adapter is trained, under the names of peft, transformers and Olive; or what you bring instead."""

    method: Literal["lora", "qlora", "dora", "rslora", "loraplus", "none"] = "lora"
    """qlora: LoRA on a base in 4 bits. dora: direction and magnitude apart. rslora: scale alpha / sqrt(r).
    loraplus: a higher learning rate for B. none: the base model is quantized as it is."""
    adapter: str | None = None
    """Folder of a peft adapter that you have, instead of training one; method tells how it was trained."""
    merged: str | None = None
    """Folder of a fine-tuned model that you have (safetensors), instead of training and merging."""
    r: Count = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """all-linear: every linear layer but the vocabulary head; or names, such as [qkv_proj, o_proj]."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit code of the frozen base (qlora)."""
    double_quant: bool = True
    """The scales of the 4-bit blocks are quantized too (qlora)."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 16
    """Learning rate of B divided by that of A (loraplus)."""
    epochs: Positive = 1
    max_steps: Count | None = None
    """Optimizer steps; where it is given, it decides and not `epochs`."""
    per_device_train_batch_size: Count = 16
    per_device_eval_batch_size: Count = 32
    gradient_accumulation_steps: Count = 1
    learning_rate: Positive = 3e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_share: Share = 0.03
    """Share of all steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    max_grad_norm: Positive = 1.0
    eval_steps: Count = 50
    """Steps between validations; a checkpoint is written at each, the best one is kept."""
    metric_for_best_model: Literal["task", "loss"] = "task"
    """What the best checkpoint is chosen by: the task's metric (macro-F1 of the labels' probabilities, chrF of free
    answers), ties by the loss; or the loss alone, which is quicker."""
    early_stopping_patience: Count | None = None
    """Validations in a row without a better one after which training stops; left out: it never does."""
    class_balance: Literal["none", "weight", "oversample"] = "none"
    """weight: a row's loss counts inversely to the size of its class. oversample: rows of small classes come more
    often. Both on training rows alone."""
    logging_steps: Count = 10
    group_by_length: bool = False
    """Rows of like length in a batch: saves padding for the few models whose rows cannot be packed."""
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the machine has units for it, else float32."""
    data_seed: Seed | None = None
    """Order of the rows; left out: `seed`."""
    loss: Literal["completion", "all"] = "completion"
    """The answer and its end token only, or all tokens (as Olive trains)."""
    corpus_strategy: Literal["rows", "join"] = "rows"
    """rows: each row is a sequence of its own. join: rows are joined and cut into blocks, as Olive does."""
    source_max_len: Tokens = 1024
    """Tokens in a block (join only)."""

    @model_validator(mode="after")
    def _join_needs_all(self) -> "Finetune":
        if self.corpus_strategy == "join" and self.loss == "completion":
            raise ValueError("corpus_strategy: join trains on all tokens, since blocks cut rows: set loss: all")
        if self.corpus_strategy == "join" and self.class_balance != "none":
            raise ValueError("class_balance needs rows of one class each: use corpus_strategy: rows")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> "Finetune":
        if self.adapter and self.merged:
            raise ValueError("give adapter: or merged:, not both")
        if self.method == "none" and (self.adapter or self.merged):
            raise ValueError("method: none quantizes the base model as it is: leave out adapter: and merged:")
        return self


class Evaluate(Section):
    """How every stage is scored, on the same rows."""

    greedy_rows: Annotated[int, Field(ge=0, le=2**31 - 1)] = 100
    """Rows, from the first, that are also answered freely; shows whether the model stops and stays on the labels."""
    batch_size: Count = 16
    """Rows scored together in PyTorch."""
    max_new_tokens: Count = 64
    """Longest free answer (generation only; a label needs only its own length)."""
    bootstrap_samples: Count = 2000


class Benchmark(Section):
    """How speed and memory are measured, on validation prompts."""

    prompts: Count = 20
    new_tokens: Count = 64


class Selection(Section):
    """Constraints on the variant that ships, measured on this machine and on validation rows."""

    metric: str | None = None
    """Default: macro_f1 for classification, chrf for generation."""
    min_quality: float | None = None
    max_size_mb: Positive | None = None
    max_first_token_ms: Positive | None = None
    min_tokens_per_second: Positive | None = None
    max_peak_rss_mb: Positive | None = None


class Gate(Section):
    """What the packaged model must reach on the test rows; else the run fails after its report is written."""

    minimum: dict[str, float] = Field(default={})
    """Lowest value by metric."""
    beat_baseline: Literal["shown", "point", False] = False
    """shown (or true): better than every baseline and the untouched base, by the paired test and the interval.
    point: a higher value than the best baseline, whatever the luck of the rows."""

    @field_validator("beat_baseline", mode="before")
    @classmethod
    def _true_is_shown(cls, value: Any) -> Any:
        return "shown" if value is True else value


class Sweep(Section):
    """A grid: every combination of the listed values is a run, or a variant. What they share is made once."""

    seed: list[Seed] = Field(default=[])
    """Seeds of the training (start of the adapter, order of rows); rows and split stay those of `seed`."""
    finetune: dict[str, list[Any]] = Field(default={})
    """Values by key of `finetune`."""
    variants: dict[str, dict[str, list[Any]]] = Field(default={})
    """Values by variant and key."""


class Config(Section):
    """A whole run."""

    results: Annotated[
        str,
        StringConstraints(pattern=RESULTS),
        AfterValidator(lambda folder: str(PurePath(folder))),
    ] = "results"
    """Output folder; two configurations never share one."""
    seed: Seed = 0
    task: Literal["classification", "generation"] = "classification"
    data: Data
    base_model: BaseModelSource
    split: Split = Split()
    corpus: Corpus
    finetune: Finetune = Finetune()
    sweep: Sweep = Sweep()
    keep: Literal["all", "selected"] = "all"
    """Which weights stay on disk: of all runs, or of the selected one (kept in `selected/`)."""
    variants: Annotated[dict[Name, Variant], Field(min_length=1)] = Field(default={"int4": Variant()})
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    selection: Selection = Selection()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        self._check_columns()
        if self.task == "generation" and self.data.labels:
            raise ValueError("data.labels: belongs to task classification")
        if not any(variant.scored for variant in self.every_variant.values()):
            raise ValueError("variants: none is scored, so none could be selected; add one for the cpu provider")
        if self.task == "generation" and any(run.finetune["class_balance"] != "none" for run in self.runs.values()):
            raise ValueError("finetune.class_balance: belongs to task classification")
        metrics = find_metrics(self.task, "is_selectable")
        named = {
            "selection.metric": self.selection.metric,
            **{f"gate.minimum.{name}": name for name in self.gate.minimum},
        }
        for key, name in named.items():
            if name and name not in metrics:
                raise ValueError(f"{key}: task {self.task} has no metric {name}, use one of {', '.join(metrics)}")
        limits = {f"gate.minimum.{name}": (name, value) for name, value in self.gate.minimum.items()}
        selected_by = self.selection.metric or SELECTED_BY[self.task]
        limits["selection.min_quality"] = (selected_by, self.selection.min_quality or 0)
        for key, (name, value) in limits.items():
            highest = METRICS[name].highest
            if value > highest:
                raise ValueError(f"{key}: {value:g} can never be reached, {name} goes up to {highest:g}")
        if self.task == "generation" and self.evaluate.greedy_rows == 0:
            raise ValueError(
                "evaluate.greedy_rows: 0 leaves no free answers, from which checkpoint and variant are chosen: raise it"
            )
        return self

    def _check_columns(self) -> None:
        columns = template_columns(self.corpus.model_dump(), self.data.target)
        if not columns:
            raise ValueError("corpus: the template names no column besides the target, so every prompt is the same")
        asked = columns_of(parse_segments(f"{self.corpus.system or ''}{self.corpus.user or ''}"))
        if self.data.target in asked:
            raise ValueError(f"corpus: the question holds {placeholder(self.data.target)}, which is the answer")
        for name in self.data.optional_columns or ():
            if name not in columns:
                raise ValueError(f"data.optional_columns: the template asks for {', '.join(columns)}, not for {name}")

    @model_validator(mode="after")
    def _sweepable(self) -> "Config":
        for key, values in self.sweep.finetune.items():
            _check_values(f"sweep.finetune.{key}", Finetune, self.finetune, key, values)
        for name, grid in self.sweep.variants.items():
            if name not in self.variants:
                raise ValueError(f"sweep.variants.{name}: no such variant, there are {', '.join(self.variants)}")
            for key, values in grid.items():
                _check_values(f"sweep.variants.{name}.{key}", Variant, self.variants[name], key, values)
        if len(set(self.sweep.seed)) < len(self.sweep.seed):
            raise ValueError("sweep.seed: holds a seed twice")
        _ = self.every_variant  # names that collide, values that do not go together
        trained = [run.finetune for run in self.runs.values() if run.trained]
        if self.sweep.seed and not trained:
            raise ValueError("sweep.seed: nothing is trained here, so no seed changes anything: leave it out")
        return self

    @property
    def runs(self) -> dict[str, Run]:
        """Every training of the sweep, or the one of `finetune`."""
        found = expand_runs(self.finetune.model_dump(), self.sweep.finetune, self.sweep.seed or [self.seed])
        return {
            name: Run(run.group, run.seed, _validated(f"sweep.finetune ({name})", Finetune, run.finetune).model_dump())
            for name, run in found.items()
        }

    @property
    def every_variant(self) -> dict[str, Variant]:
        """Every variant of the sweep, or those of `variants`."""
        found = expand_variants({name: one.model_dump() for name, one in self.variants.items()}, self.sweep.variants)
        return {name: _validated(f"sweep.variants ({name})", Variant, values) for name, values in found.items()}


def config_schema() -> dict[str, Any]:
    """JSON Schema of the configuration, for editors."""
    return Config.model_json_schema()


def _check_values(where: str, kind: type[Section], section: Section, key: str, values: list[Any]) -> None:
    """Each of the values that a sweep lists for a key must be one that the key can have."""
    if key not in kind.model_fields:
        close = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.5)
        raise ValueError(f"{where}: no such key" + (f", did you mean {close[0]}?" if close else ""))
    if not values:
        raise ValueError(f"{where}: lists no value")
    for value in values:
        _validated(where, kind, {**section.model_dump(), key: value})


def _validated(where: str, kind: type[S], values: dict[str, Any]) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = (
            str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['msg']} ({first['input']!r})"
        )
        raise ValueError(f"{where}: {reason}") from None


def _checked(function: Any, text: str) -> None:
    try:
        function(text)
    except UserError as error:
        raise ValueError(str(error)) from None
