"""The configuration: the only definition of what `config.yaml` may hold.

The Snakefile validates with it before the DAG is built. `examples/config.schema.json` (for editors) and
`docs/configuration.md` are generated from it; the docstring below a key is its description in both. Scripts never
import it: each gets its own sections, resolved, as JSON. The configuration determines results; profiles say how and
where they are made.
"""

import difflib
from datetime import date
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, field_validator, model_validator

from lib.config.decision import Decision
from lib.config.sources import BaseModelSource, Data
from lib.config.sweep import Run, count_trainings, expand_runs, expand_variants
from lib.config.variants import Count, Section, Variant
from lib.core.cli import UserError
from lib.data.templates import (
    UNSURE,
    format_placeholder,
    list_columns,
    list_conditions,
    list_template_columns,
    parse_segments,
)
from lib.evaluation.registry import METRICS, SELECTED_BY, find_metrics

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
_PART = "[A-Za-z0-9._][A-Za-z0-9._-]*"  # of a path; what begins with - would be an option
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]  # numpy and scikit-learn take no other
Tokens = Annotated[int, Field(ge=8, le=2**31 - 1)]
S = TypeVar("S", bound="Section")
_MOST_PARTS = 6  # of a template, that depend on a column

RESULTS = rf"^/*{_PART}(/+{_PART})*/*$"


class Split(Section):
    """How the rows are divided. What neither split takes is for training; near-duplicates stay in one split."""

    validation: Fraction = 0.1
    """Share of the rows that choose the best training checkpoint and the variant that ships."""
    test: Fraction = 0.15
    """Share of the rows that are scored once, at the end, and decide the gate."""
    column: str | None = None
    """Column that says to which split a row belongs: train, validation or test, or what `values` says. Rows with an
    empty cell count as train. A split that no row is given to is made, by its share, of the rows for training. Not set:
    all splits are made."""
    values: Annotated[dict[Literal["train", "validation", "test"], str], Field(min_length=1)] | None = None
    """What stands in `column`, by split, where it is not the split's own name: {test: eval}. Not set: the names are
    train, validation and test."""
    groups: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns whose values keep rows together, such as [customer_id]: rows with the same value land in the same split.
    Not set: only near-duplicates stay together."""
    leakage: Literal["error", "report", "drop"] | None = None
    """What happens when a row is like one of another split, or in one group with it. `error`: the workflow stops.
    `report`: such rows are counted and listed, and the test score is told with them and without them. `drop`: the row
    of the earlier split (train, validation, test) is left out. Not set: `report` for splits that were given, else
    `error`."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave rows to train on (their sum is below 1)")
        return self

    @model_validator(mode="after")
    def _values_of_a_column(self) -> "Split":
        if self.values and not self.column:
            raise ValueError("values: needs column:, the column that holds them")
        given = list((self.values or {}).values())
        if len(set(given)) < len(given):
            raise ValueError("values: two splits have the same value")
        return self


class Corpus(Section):
    """How a row becomes prompt and completion. Give either `text_template`, or `template: chat` with `user`.

    Templates name columns in braces: {text}, {user.name}, {messages.0.content}. Put a name with a brace, quote, colon,
    ! or [ in quotes inside the braces: {"PK [m]"}."""

    template: Literal["chat"] | None = None
    """`chat` renders `user` and `system` with the tokenizer's own chat template; the target column is the reply."""
    user: str | None = None
    """Text of the user's message, with columns in braces. Needed by `template: chat`; must not name the target."""
    system: str | None = None
    """Text of the system message, with columns in braces. Only with `template: chat`, and optional there."""
    text_template: str | None = None
    """One text whose last placeholder is the target column. A part from {?input} to {/input} is written only where the
    column `input` is not empty. The text before that placeholder is the prompt."""
    chat_options: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], bool | int | str] | None = None
    """Variables of the chat template, such as {enable_thinking: false}, with which Qwen3 writes its empty thoughts into
    the prompt and not into every answer. They go into the packaged chat template."""
    chat_date: date | None = None
    """What the chat template is told when it asks for the date of today, such as 2026-01-31: the same for every row.
    SmolLM3 and GPT-OSS always ask, Granite 3 without `system`."""
    turns: Literal["last"] | None = None
    """Which turns of a conversation are trained. `last`: the assistant's last one. Not set: all of the assistant."""
    max_length: Tokens = 512
    """Largest number of tokens of prompt and completion together. `truncation` decides about longer rows."""
    truncation: Literal["reject", "right", "left"] = "reject"
    """What happens to a row longer than `max_length`. `reject` sets it aside; `right` and `left` shorten its longest
    value at the end or at the start."""

    @model_validator(mode="after")
    def _one_template(self) -> "Corpus":
        if self.template and self.text_template:
            raise ValueError("give either template: chat (with user:) or text_template:")
        if self.template is None and (self.user or self.system):
            raise ValueError("user: and system: belong to template: chat")
        if self.text_template and (self.chat_options or self.chat_date):
            raise ValueError("chat_options: and chat_date: belong to a chat template, not to text_template:")
        for text in (self.user, self.system, self.text_template):
            if text:
                _check_text(parse_segments, text)
        return self


class Finetune(Section):
    """How the adapter is trained, in the terms of peft, transformers and Olive; or which adapter or model you bring."""

    method: Literal["lora", "qlora", "dora", "rslora", "loraplus", "none"] = "lora"
    """Fine-tuning method. `qlora`: LoRA on a base in 4 bits. `dora`: learns direction and magnitude separately.
    `rslora`: scales the adapter by lora_alpha / sqrt(r). `loraplus`: a higher learning rate for matrix B. `none`: no
    fine-tuning, the base model is quantized as it is."""
    adapter: str | None = None
    """Folder of a peft adapter of yours, used instead of training one. `method` says how it was trained."""
    merged: str | None = None
    """Folder of a fine-tuned model of yours (safetensors), used instead of training and merging."""
    r: Count = 16
    """Rank of the adapter: a larger rank has more parameters and learns more."""
    lora_alpha: Positive = 32
    """Scale of the adapter: its output is multiplied by lora_alpha / r, or by lora_alpha / sqrt(r) with `rslora`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which an input of the adapter is dropped in training."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Layers that get an adapter. `all-linear`: every linear layer except the vocabulary head. Or a list of names, such
    as [qkv_proj, o_proj]."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type of the frozen base. Only for `qlora`."""
    double_quant: bool = True
    """Quantize the scales of the 4-bit blocks too. Only for `qlora`."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 16
    """Learning rate of matrix B divided by that of matrix A. Only for `loraplus`."""
    num_train_epochs: Positive = 1
    """How often training goes through the training rows; may be a fraction. `max_steps` overrides it."""
    max_steps: Count | None = None
    """Number of optimizer steps. If set, it decides how long training takes, not `num_train_epochs`."""
    per_device_train_batch_size: Count = 16
    """Rows in a training batch. Multiplied by `gradient_accumulation_steps`, it gives the rows of an optimizer step,
    which several GPUs divide among them."""
    per_device_eval_batch_size: Count = 32
    """Rows in a batch of validation. Changes speed and memory."""
    gradient_accumulation_steps: Count = 1
    """Batches whose gradients are added up before an optimizer step."""
    learning_rate: Positive = 3e-4
    """Highest learning rate of the optimizer (AdamW), which the schedule scales."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate changes after the warm-up: it falls along a line or a cosine, or stays. `constant` has no
    warm-up."""
    warmup_steps: Annotated[float, Field(ge=0, le=2**31 - 1)] = 0.03
    """Steps in which the learning rate rises from 0: a whole number of steps or, below 1, a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    adam_beta1: Fraction = 0.9
    """AdamW's decay rate of the mean of the gradients."""
    adam_beta2: Fraction = 0.999
    """AdamW's decay rate of the mean of the squared gradients."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger norm are scaled down to it."""
    eval_steps: Count = 50
    """Steps between two validations. Each writes a training checkpoint, and the best one becomes the adapter."""
    eval_rows: Count | None = None
    """Rows of the validation split that a validation scores, drawn by the top-level `seed`. Not set: 1,000. All of them
    are scored once the training has ended."""
    metric_for_best_model: Literal["task", "loss"] = "task"
    """What chooses the best training checkpoint. `task`: the metric of the task on validation rows (macro-F1 of the
    label probabilities, chrF of generated answers), ties by the loss. `loss`: the validation loss alone, which is
    faster."""
    early_stopping_patience: Count | None = None
    """Stop training after this many validations in a row without improvement. Not set: never stop early."""
    class_balance: Literal["none", "weight", "oversample"] = "none"
    """How rare classes are balanced, in the training rows only. `weight`: the loss of a row is weighted inversely to
    the size of its class. `oversample`: rows of rare classes are drawn more often."""
    logging_steps: Count = 10
    """Steps between two points of the training loss in the log and the learning curve."""
    group_by_length: bool = False
    """Put rows of similar length into a batch. Saves padding for the few models whose rows cannot be packed."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format that training computes in. `auto`: bfloat16 where the machine has units for it, float32 elsewhere.
    Set `float32` where two machines must agree."""
    data_seed: Seed | None = None
    """Seed of the order of the training rows. Not set: the seed of the training."""
    loss: Literal["completion", "all"] = "completion"
    """Which tokens the loss counts. `completion`: those of the completion and its end token. `all`: every token, as
    Olive trains."""
    corpus_strategy: Literal["rows", "join"] = "rows"
    """`rows`: each row is a sequence of its own. `join`: rows are joined and cut into blocks, as Olive does; needs
    `loss: all`."""
    source_max_len: Tokens = 1024
    """Tokens in a block. Only for `corpus_strategy: join`."""

    @model_validator(mode="after")
    def _warm_up_whole_steps(self) -> "Finetune":
        if self.warmup_steps >= 1 and self.warmup_steps % 1:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} is neither a whole number of steps nor a share below 1"
            )
        return self

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
    """How every stage is scored: base model, adapter, merged model and each variant, all on the same rows."""

    greedy_rows: Annotated[int, Field(ge=0, le=2**31 - 1)] = 100
    """Number of rows, from the first, for which the model also generates an answer freely. It shows whether the model
    stops and stays on the labels; with task generation these answers are what is scored, so 0 is refused there."""
    batch_size: Count = 16
    """Rows that PyTorch scores at once. Changes speed and memory."""
    max_new_tokens: Count = 64
    """Longest generated answer, in tokens. Only for task generation; a label gets as many tokens as it needs."""
    bootstrap_samples: Count = 2000
    """Number of times the rows are resampled for each 95 % interval."""


class Benchmark(Section):
    """How speed and memory of each variant are measured, on prompts of validation rows."""

    prompts: Count = 20
    """Number of prompts."""
    new_tokens: Count = 64
    """Tokens generated for each prompt."""


class Selection(Section):
    """Which variant ships: the metric and the limits, on validation rows and on the machine that measures the speed.

    A variant beyond a limit is never chosen; a limit that is not set does not count."""

    metric: str | None = None
    """Metric that chooses. Classification: `macro_f1` (the default) or `accuracy`; generation: `chrf` (the default),
    `token_f1`, `exact_match`, or where rows call tools `tool_name_match` (the same tools are called) or
    `tool_call_match` (with equal arguments)."""
    min_quality: float | None = None
    """Lowest value of the metric: up to 100 for chrf, up to 1 for the others."""
    max_size_mb: Positive | None = None
    """Largest size of the model folder, in MB."""
    max_first_token_ms: Positive | None = None
    """Longest median time to the first token, in milliseconds."""
    min_tokens_per_second: Positive | None = None
    """Lowest median speed after the first token, in tokens a second."""
    max_peak_rss_mb: Positive | None = None
    """Largest peak memory (resident set size) of a process that runs the model, in MB."""


class Gate(Section):
    """What the packaged model must reach on the test rows. If it does not, the run fails after its report is
    written."""

    minimum: dict[str, float] = Field(default={})
    """Lowest value of each metric, such as {accuracy: 0.7}. The metrics are those of `selection.metric`."""
    beat_baseline: Literal["shown", "point", False] = False
    """`shown` (or true): significantly better than every baseline and the untouched base model, by the paired test and
    the interval. `point`: a higher value than the best baseline's, significant or not. false: no comparison."""

    @field_validator("beat_baseline", mode="before")
    @classmethod
    def _true_is_shown(cls, value: Any) -> Any:
        return "shown" if value is True else value


class Sweep(Section):
    """A grid: every combination of the listed values is a run or a variant. What they share is made once."""

    seed: list[Seed] = Field(default=[])
    """Seeds of the training: each one starts the adapter and orders the rows again. The split keeps the top-level
    `seed`. Empty: one run with that seed."""
    finetune: dict[str, list[Any]] = Field(default={})
    """Values to try for keys of `finetune`, such as {r: [8, 32]}."""
    sample: Count | None = None
    """How many random runs of the grid of `finetune` and `seed` are made. A larger sample holds every smaller one. Not
    set: all of the grid."""
    variants: dict[str, dict[str, list[Any]]] = Field(default={})
    """Values to try for keys of a variant, such as {int4: {block_size: [32, 64]}}."""

    @model_validator(mode="after")
    def _sample_of_a_grid(self) -> "Sweep":
        if self.sample is None:
            return self
        if not self.finetune:
            raise ValueError(
                "sample: is drawn from the grid of finetune:, which is not there; add it, or leave out sample"
            )
        size = count_trainings(self.finetune, self.seed)
        if 0 < size < self.sample:
            raise ValueError(f"sample: {self.sample} is more than the {size} runs of the grid; use at most {size}")
        return self


class Config(Section):
    """A whole run: rows in, a packaged model and a report out. Any other key is an error."""

    results: Annotated[
        str,
        StringConstraints(pattern=RESULTS),
        AfterValidator(lambda folder: str(PurePath(folder))),
    ] = "results"
    """Output folder, relative to the working folder. Each configuration needs one of its own."""
    seed: Seed = 0
    """Seed of the split, of drawn rows, and of the training unless `sweep.seed` lists others."""
    task: Literal["classification", "generation"] = "classification"
    """What the model learns: one of a set of labels (`classification`), or free text (`generation`)."""
    data: Data
    """The rows: where they come from, and which of them are used."""
    base_model: BaseModelSource
    """The model to fine-tune. It also provides the tokenizer, and the score that the fine-tuned model has to beat."""
    split: Split = Split()
    """Shares of the rows for validation and test."""
    corpus: Corpus
    """The template that turns a row into prompt and completion."""
    finetune: Finetune = Finetune()
    """The training, or the adapter or model that replaces it."""
    sweep: Sweep = Sweep()
    """Values to try against each other."""
    keep: Literal["all", "selected"] = "all"
    """Whose weights stay on disk: those of all runs, or those of the selected run (in `selected/`)."""
    variants: Annotated[dict[Name, Variant], Field(min_length=1)] = Field(default={"int4": Variant()})
    """The ONNX builds to compare, by a name of your choice (a-z, 0-9 and -)."""
    evaluate: Evaluate = Evaluate()
    """How the stages are scored."""
    benchmark: Benchmark = Benchmark()
    """How speed is measured."""
    selection: Selection = Selection()
    """How the variant that ships is chosen."""
    decision: Decision | None = None
    """When the packaged model answers "unsure". Not set: it always gives a label."""
    gate: Gate = Gate()
    """What the packaged model must reach."""
    tracking: Annotated[list[Literal["tensorboard", "mlflow"]], Field(min_length=1)] | None = None
    """Where the numbers go beside the results: curves while a training runs, scores at the end. `tensorboard`: event
    files in `work/tracking`. `mlflow`: the server that MLFLOW_TRACKING_URI names, else a folder in `work/tracking`.
    Reruns nothing but this. Not set: nowhere."""

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        self._check_columns()
        if self.task == "generation" and self.data.labels:
            raise ValueError("data.labels: belongs to task classification")
        if self.decision and self.task == "generation":
            raise ValueError("decision: belongs to task classification, whose labels have probabilities")
        if self.decision and self.data.labels and UNSURE in self.data.labels:
            raise ValueError(
                f"data.labels: {UNSURE!r} is the answer below the threshold of decision:; rename the label"
            )
        if self.task == "classification" and self.data.answers:
            raise ValueError("data.answers: belongs to task generation")
        if self.split.column and self.data.splits:
            raise ValueError(
                "split.column: the files of data.files are named by split already; leave one of the two out"
            )
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

    def _check_conversation(self) -> None:
        corpus, named = self.corpus, ("user", "system", "text_template")
        if given := [name for name in named if getattr(corpus, name)]:
            raise ValueError(f"corpus.{given[0]}: data.conversation has its own turns; leave it out")
        if corpus.truncation != "reject":
            raise ValueError("corpus.truncation: a conversation cannot be shortened; use reject")
        if self.data.optional_columns:
            raise ValueError("data.optional_columns: data.conversation has no columns; leave it out")

    def _check_columns(self) -> None:
        if self.data.conversation:
            return self._check_conversation()
        if self.corpus.turns:
            raise ValueError("corpus.turns: belongs to data.conversation")
        if self.corpus.template is None and self.corpus.text_template is None:
            raise ValueError("corpus: give either template: chat (with user:) or text_template:")
        if self.corpus.template == "chat" and not self.corpus.user:
            raise ValueError("corpus: template: chat needs user: (the question, with the columns in braces)")
        columns = list_template_columns(self.corpus.model_dump(), self.data.target)
        if not columns:
            raise ValueError("corpus: the template names no column besides the target, so every prompt is the same")
        asked = list_columns(parse_segments(f"{self.corpus.system or ''}{self.corpus.user or ''}"))
        if self.data.target in asked:
            raise ValueError(f"corpus: the question holds {format_placeholder(self.data.target)}, which is the answer")
        texts = (self.corpus.text_template, self.corpus.system, self.corpus.user)
        conditions = list_conditions([one for text in texts if text for one in parse_segments(text)])
        if len(conditions) > _MOST_PARTS:
            raise ValueError(
                f"corpus: the template has {len(conditions)} parts, at most {_MOST_PARTS} can be told apart"
            )
        for name in conditions:
            if name not in (self.data.optional_columns or ()):
                raise ValueError(f"data.optional_columns: add {name}, since the template has a part {{?{name}}}")
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
        found = expand_runs(
            self.finetune.model_dump(),
            self.sweep.finetune,
            self.sweep.seed or [self.seed],
            sample=self.sweep.sample,
            sample_seed=self.seed,
        )
        return {
            name: Run(run.group, run.seed, _validate(f"sweep.finetune ({name})", Finetune, run.finetune).model_dump())
            for name, run in found.items()
        }

    @property
    def leakage(self) -> str:
        """`split.leakage`, or what it is where it is not set."""
        return self.split.leakage or ("report" if self.split.column or self.data.splits else "error")

    @property
    def every_variant(self) -> dict[str, Variant]:
        """Every variant of the sweep, or those of `variants`."""
        found = expand_variants({name: one.model_dump() for name, one in self.variants.items()}, self.sweep.variants)
        return {name: _validate(f"sweep.variants ({name})", Variant, values) for name, values in found.items()}


def build_json_schema() -> dict[str, Any]:
    """Return JSON Schema of the configuration, for editors."""
    return Config.model_json_schema()


def _check_values(where: str, kind: type[Section], section: Section, key: str, values: list[Any]) -> None:
    """Raise `ValueError` unless each value that a sweep lists for a key is one that the key can have."""
    if key not in kind.model_fields:
        close = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.5)
        raise ValueError(f"{where}: no such key" + (f", did you mean {close[0]}?" if close else ""))
    if not values:
        raise ValueError(f"{where}: lists no value")
    for value in values:
        _validate(where, kind, {**section.model_dump(), key: value})


def _validate(where: str, kind: type[S], values: dict[str, Any]) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        reason = (
            str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['msg']} ({first['input']!r})"
        )
        raise ValueError(f"{where}: {reason}") from None


def _check_text(function: Any, text: str) -> None:
    try:
        function(text)
    except UserError as error:
        raise ValueError(str(error)) from None
