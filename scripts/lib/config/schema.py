"""The configuration: the only definition of what `config.yaml` may hold.

The Snakefile validates with it before the DAG is built. `examples/config.schema.json` (for editors) and
`docs/configuration.md` are generated from it; the docstring below a key is its description in both. Scripts never
import it: each gets its own sections, resolved, as JSON. The configuration determines results; profiles say how and
where they are made.
"""

import difflib
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, field_validator, model_validator

from lib.config.decision import Decision
from lib.config.sources import BaseModelSource, Data
from lib.config.sweep import Run, count_trainings, expand_runs, expand_variants
from lib.config.training import Corpus, Finetune, Positive, Seed, Split
from lib.config.variants import Count, Section, Variant
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
S = TypeVar("S", bound="Section")
_MOST_PARTS = 6  # of a template, that depend on a column

RESULTS = rf"^/*{_PART}(/+{_PART})*/*$"


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
