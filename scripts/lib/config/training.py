"""What is learned and how: the sections `split`, `corpus` and `finetune` of the configuration (`lib.config.schema`)."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lib.config.variants import Count, Section
from lib.core.cli import UserError
from lib.data.templates import parse_segments

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]  # numpy and scikit-learn take no other
Tokens = Annotated[int, Field(ge=8, le=2**31 - 1)]


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


def _check_text(function: Any, text: str) -> None:
    try:
        function(text)
    except UserError as error:
        raise ValueError(str(error)) from None
