"""The configuration: the only definition of what `config.yaml` may hold.

The Snakefile validates with it before the DAG is built; `examples/config.schema.json` (for editors)
is generated from it. Scripts never import it: each gets its own sections, resolved, as JSON.
What determines results stands here; how and where they are made stands in profiles.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lib.cli import UserError, fail
from lib.templates import parse_segments, template_columns

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

METRICS = {
    "classification": ("macro_f1", "accuracy"),
    "generation": ("chrf", "token_f1", "exact_match"),
}


_VALID_PRECISIONS = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp32", "fp16", "bf16", "int8", "int4"),
    "dml": ("fp16", "int4"),
    "webgpu": ("int8", "int4"),
    "trt-rtx": ("fp16", "bf16"),
}
_QUANTIZED_ONLY = (
    "block_size",
    "accuracy_level",
    "is_symmetric",
    "op_types_to_quantize",
    "nodes_to_exclude",
    "algo_config",
    "matmul_mixed_precision",
    "use_qdq",
)
_PAIR = r"(last_matmul|mixed_layers|linear_attn):(int4|int8)"
_MIXED = rf"{_PAIR}(,{_PAIR})*"


class Section(BaseModel):
    """Unknown keys are errors; numbers that YAML reads as text (`1e-4`) are read as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataHub(Section):
    """A dataset on the Hugging Face hub."""

    id: str
    revision: Commit
    """The commit, 40 hex digits: a branch name would change under you."""
    split: str = "train"
    config: str | None = None


class ModelHub(Section):
    """A model on the Hugging Face hub; a gated one reads its token from the variable HF_TOKEN."""

    id: str
    revision: Commit
    """The commit, 40 hex digits: a branch name would change under you."""


class Package(Section):
    """A file inside a Python package."""

    name: str
    version: str
    sha256: Sha256
    """Of the package file (wheel or sdist), checked before anything in it is opened."""
    file: str
    """Path inside the package; `a.tar.gz!b.txt` reaches into an archive."""


class Data(Section):
    """Where the rows come from and what is a usable row."""

    files: list[str] | None = None
    """JSON list, JSON Lines, CSV or Parquet files; relative to the working folder, else to the Snakefile."""
    hub: DataHub | None = None
    package: Package | None = None
    target: str
    """Column with the label (classification) or the answer (generation)."""
    labels: list[str] | None = Field(None, min_length=2)
    """All labels; rows with another one are set aside. Left out: the labels that the data holds."""
    unreadable: Literal["error", "reject"] = "error"
    """A row that cannot be read stops the workflow, or is set aside."""
    special_tokens: Literal["reject", "strip"] = "reject"
    """A value that contains the text of a control token is set aside, or loses that text."""
    near_duplicates: Share = 0.8
    """Rows at least this similar (Jaccard of character 5-grams) never land in different splits."""
    min_rows_per_class: Count = 20
    """Fewer usable rows in a class stop the workflow."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        _exactly_one(self, "files", "hub", "package")
        return self


class BaseModelSource(Section):
    """The model to fine-tune: safetensors, or GGUF that is dequantised. No code of a model is run."""

    path: str | None = None
    """Folder (or .gguf file); relative to the working folder, else to the Snakefile."""
    hub: ModelHub | None = None
    package: Package | None = None
    parameters: Count
    """Number of parameters: memory and time of the rules follow from it before the model is there."""

    @model_validator(mode="after")
    def _one_source(self) -> "BaseModelSource":
        _exactly_one(self, "path", "hub", "package")
        return self


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
    """chat: the tokenizer's own chat template around `user` (and `system`)."""
    user: str | None = None
    system: str | None = None
    text_template: str | None = None
    """One text with the target as last placeholder; what stands before it is the prompt."""
    max_length: Annotated[int, Field(ge=8)] = 512
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
    """LoRA settings under the names of peft and transformers."""

    method: Literal["lora"] = "lora"
    r: Count = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
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
    logging_steps: Count = 10
    group_by_length: bool = False
    """Rows of like length in a batch: saves padding for the few models whose rows cannot be packed."""
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the machine has units for it, else float32."""
    data_seed: int | None = None
    """Order of the rows; left out: `seed`."""
    loss: Literal["completion", "all"] = "completion"
    """The answer and its end token only, or all tokens (as Olive trains)."""
    corpus_strategy: Literal["rows", "join"] = "rows"
    """rows: each row is a sequence of its own. join: rows are joined and cut into blocks, as Olive does."""
    source_max_len: Annotated[int, Field(ge=8)] = 1024
    """Tokens in a block (join only)."""

    @model_validator(mode="after")
    def _join_needs_all(self) -> "Finetune":
        if self.corpus_strategy == "join" and self.loss == "completion":
            raise ValueError("corpus_strategy: join trains on all tokens, since blocks cut rows: set loss: all")
        return self


class Variant(Section):
    """One ONNX build; the options are those of the onnxruntime-genai builder, by its names."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "int4"
    execution_provider: Literal["cpu", "cuda", "dml", "webgpu", "trt-rtx"] = "cpu"
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    accuracy_level: Literal[1, 2, 3, 4] | None = None
    is_symmetric: bool | None = None
    op_types_to_quantize: list[Literal["MatMul", "Gather"]] | None = None
    nodes_to_exclude: list[str] | None = None
    algo_config: Literal["default", "rtn", "k_quant"] | None = None
    matmul_mixed_precision: str | None = None
    """`selector:type` pairs of last_matmul, mixed_layers, linear_attn, such as `last_matmul:int8,mixed_layers:int8`."""
    use_qdq: bool | None = None
    prune_lm_head: bool | None = None
    shared_embeddings: bool | None = None
    score: bool | None = None
    """Score and benchmark it here; default: only the cpu provider. What is not scored is never selected."""

    @model_validator(mode="after")
    def _buildable(self) -> "Variant":
        valid = _VALID_PRECISIONS[self.execution_provider]
        if self.precision not in valid:
            raise ValueError(f"{self.execution_provider} cannot run {self.precision}: use one of {', '.join(valid)}")
        given = [name for name in _QUANTIZED_ONLY if getattr(self, name) is not None]
        if given and self.precision not in ("int4", "int8"):
            raise ValueError(f"{', '.join(given)} only means something with precision int4 or int8")
        if self.matmul_mixed_precision and not re.fullmatch(_MIXED, self.matmul_mixed_precision):
            raise ValueError("matmul_mixed_precision is not of the form last_matmul:int8,mixed_layers:int8")
        return self

    @property
    def scored(self) -> bool:
        return self.execution_provider == "cpu" if self.score is None else self.score


class Evaluate(Section):
    """How every stage is scored, on the same rows."""

    greedy_rows: Annotated[int, Field(ge=0)] = 100
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

    minimum: dict[str, float] = {}
    """Lowest value by metric."""
    beat_baseline: bool = False
    """Better than the best baseline (TF-IDF; for generation the nearest question)."""


class Config(Section):
    """A whole run."""

    results: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$")] = "results"
    """Output folder; two configurations never share one."""
    seed: int = 0
    task: Literal["classification", "generation"] = "classification"
    data: Data
    base_model: BaseModelSource
    split: Split = Split()
    corpus: Corpus
    finetune: Finetune = Finetune()
    variants: Annotated[dict[Name, Variant], Field(min_length=1)] = {"int4": Variant()}
    evaluate: Evaluate = Evaluate()
    benchmark: Benchmark = Benchmark()
    selection: Selection = Selection()
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if not template_columns(self.corpus.model_dump(), self.data.target):
            raise ValueError("corpus: the template names no column besides the target, so every prompt is the same")
        if self.corpus.template == "chat" and f"{{{self.data.target}}}" in f"{self.corpus.user}{self.corpus.system}":
            raise ValueError(f"corpus: the question holds {{{self.data.target}}}, which is the answer")
        if self.task == "generation" and self.data.labels:
            raise ValueError("data.labels: belongs to task classification")
        if self.data.labels and len(set(self.data.labels)) < len(self.data.labels):
            raise ValueError("data.labels: holds a label twice")
        if not any(variant.scored for variant in self.variants.values()):
            raise ValueError("variants: none is scored, so none could be selected; add one for the cpu provider")
        metrics = METRICS[self.task]
        named = {
            "selection.metric": self.selection.metric,
            **{f"gate.minimum.{name}": name for name in self.gate.minimum},
        }
        for key, name in named.items():
            if name and name not in metrics:
                raise ValueError(f"{key}: task {self.task} has no metric {name}, use one of {', '.join(metrics)}")
        return self


# What people who come from Olive's recipe, peft or transformers type, and how it is called here.
_OTHER_NAMES = {
    "lora_r": "finetune.r",
    "lora_alpha": "finetune.alpha",
    "lora_dropout": "finetune.dropout",
    "num_train_epochs": "finetune.epochs",
    "warmup_ratio": "finetune.warmup_share",
    "strategy": "finetune.corpus_strategy",
    "max_seq_len": "finetune.source_max_len",
    "eval_dataset_size": "split.validation",
    "evaluation_strategy": "finetune.eval_steps",
    "data_files": "data.files",
    "text_cols": "corpus.text_template",
    "int4_block_size": "block_size",
    "int4_accuracy_level": "accuracy_level",
    "int4_is_symmetric": "is_symmetric",
    "int4_algo_config": "algo_config",
    "int4_nodes_to_exclude": "nodes_to_exclude",
    "int4_op_types_to_quantize": "op_types_to_quantize",
}


def load_config(values: dict[str, Any], sources: list[Path]) -> Config:
    """Validate a configuration that Snakemake has read.

    values: the merged dictionary. sources: the files it came from; errors name file and line there.
    Raises `UserError` with the first error: an unknown key with the nearest known name, a wrong type
    or value, keys that contradict each other.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        path = [part for part in first["loc"] if not _is_type_choice(part, values, first["loc"])]
        what, hint = _explain(first, path)
        # A contradiction between sections is reported at the root; its message starts with the key.
        file, line = _locate(path or what.partition(":")[0].partition(" ")[0].split("."), sources)
        fail(what, hint, at=file, line=line)


def check_yaml(path: Path) -> None:
    """Refuse what YAML lets pass: duplicate keys, of which the last would win, and broken syntax.

    Raises `UserError` with file and line.
    """
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fail("no such configuration file", "copy one from examples/ or name one with --configfile", at=path)
    except UnicodeDecodeError:
        fail("not UTF-8 text", "save it as UTF-8", at=path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fail(f"not YAML: {error.problem}", "check quotes and indentation", at=path, line=mark.line + 1 if mark else 1)
    if not isinstance(tree, yaml.MappingNode):
        fail("not a mapping of keys to values", "start from one of the files in examples/", at=path, line=1)
    _refuse_duplicates(tree, path)


def config_schema() -> dict[str, Any]:
    """JSON Schema of the configuration, for editors."""
    return Config.model_json_schema()


def _exactly_one(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise ValueError(f"give exactly one of {', '.join(names)} (found {found})")
    if getattr(section, given[0]) == []:
        raise ValueError(f"{given[0]} is empty")


def _checked(function: Any, text: str) -> None:
    try:
        function(text)
    except UserError as error:
        raise ValueError(str(error)) from None


def _is_type_choice(part: int | str, values: Any, location: tuple[int | str, ...]) -> bool:
    """Pydantic adds the tried type of a union (`list[str]`, `literal['all-linear']`) to an error's path."""
    node = values
    for step in location:
        known = (isinstance(node, dict) and step in node) or (isinstance(node, list) and isinstance(step, int))
        if step == part:
            return not known and node is not None and not isinstance(node, dict)
        node = node[step] if known and not (isinstance(node, list) and step >= len(node)) else None  # type: ignore[operator]
    return False


def _explain(error: Any, path: list[int | str]) -> tuple[str, str]:
    name = ".".join(str(part) for part in path) or "the configuration"
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{name} is not a known key", _suggest(path)
    if kind == "missing":
        return f"{name} is missing", "add it"
    if kind == "value_error":
        prefix = f"{name}: " if path else ""
        return prefix + str(error["ctx"]["error"]), ""
    if "[key]" in path:
        return f"{'.'.join(map(str, path[:-2]))}: the name {path[-2]!r} cannot be used", "use a-z, 0-9 and -"
    given = error["input"]
    shown = "" if isinstance(given, (dict, list)) else f" (found {given!r})"
    if "revision" in path and kind == "string_pattern_mismatch":
        return f"{name} is not a commit{shown}", "give the commit's 40 hex digits, a branch or tag can move"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}", ""


def _suggest(path: list[int | str]) -> str:
    key = str(path[-1])
    if key in _OTHER_NAMES:
        return f"it is called {_OTHER_NAMES[key]} here"
    section: Any = Config
    for part in path[:-1]:
        section = _section_below(section, part)
        if section is None:
            return ""
    close = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [
        f"{name}.{key}"
        for name in Config.model_fields
        if key in getattr(_section_below(Config, name), "model_fields", ())
    ]
    if elsewhere:
        return f"it belongs to {elsewhere[0]}"
    return f"known keys here: {', '.join(section.model_fields)}"


def _section_below(section: Any, part: int | str) -> Any:
    """The `Section` class that key `part` of `section` holds; for `variants` and its names, `Variant`."""
    if section is Variant:
        return Variant
    field = section.model_fields.get(part)
    if field is None:
        return None
    if part == "variants":
        return Variant
    kinds = getattr(field.annotation, "__args__", (field.annotation,))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _locate(path: Sequence[int | str], sources: list[Path]) -> tuple[str, int | None]:
    """File and line of a key, or of the deepest part of its path that a file holds; later files win."""
    best: tuple[int, str, int | None] = (-1, str(sources[-1]) if sources else "--config", None)
    for source in sources:
        node = yaml.compose(source.read_text(encoding="utf-8"))
        depth, line = 0, 1
        for part in path:
            child = _child(node, part)
            if child is None:
                break
            depth, line, node = depth + 1, child[0], child[1]
        if depth >= best[0]:
            best = (depth, str(source), line)
    return best[1], best[2]


def _child(node: Any, part: int | str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == str(part)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _refuse_duplicates(node: Any, path: Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                fail(f"{key.value} stands twice (first in line {seen[key.value]})", "remove one", at=path, line=line)
            seen[key.value] = line
            _refuse_duplicates(value, path)
