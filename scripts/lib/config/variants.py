"""What a variant may be: the options of one ONNX build, and what of them goes together.

Part of the configuration model (`lib.config.schema`), with what onnxruntime-genai 0.18.0 can build and load.
"""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from lib.onnx.methods import CALIBRATED

_LARGEST = 2**31 - 1  # what the libraries hold in 32 bits
Count = Annotated[int, Field(ge=1, le=_LARGEST)]

VALID_PRECISIONS = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "bf16", "int8", "int4"),  # of fp32 the builder makes a graph that nothing loads
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


def _types(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation, those inside unions and `Annotated` too; of a list, not those of its items."""
    if get_origin(annotation) in (Union, UnionType, Annotated, Literal):
        for inner in get_args(annotation):
            yield from _types(inner if get_origin(annotation) is not Literal else type(inner))
    else:
        yield annotation


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and numbers that YAML reads as text (`1e-4`) are numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic lets pass: true for the number 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float} & set(_types(kind)):
            raise ValueError(f"{str(value).lower()} is not a number (YAML reads yes, no, on and off as true and false)")
        return value


class Calibration(Section):
    """How `algo_config: gptq` and `auto_round` round weights by prompt and completion of training rows, and by nothing
    else."""

    rows: Count | None = None
    """Number of training rows, drawn with the top-level `seed`. Not set: 256 for `gptq`, 128 for `auto_round`."""
    length: Annotated[int, Field(ge=8, le=_LARGEST)] | None = None
    """Tokens in a sequence of `auto_round`, which joins the rows and cuts them. Not set: 128. For `gptq` each row is a
    sequence of its own."""
    iterations: Count | None = None
    """Steps of signed gradient descent for each layer of the model, in `auto_round`. Not set: 50."""


class Variant(Section):
    """One ONNX build. The options are those of the onnxruntime-genai builder, under its names; an option that is not
    set has the builder's default. Most of them belong to the precisions int4 and int8."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "int4"
    """Number format of the weights. Each execution provider can run some of them; others are refused."""
    execution_provider: Literal["cpu", "cuda", "dml", "webgpu", "trt-rtx"] = "cpu"
    """What runs the model: the CPU, NVIDIA GPUs (`cuda`, `trt-rtx`), DirectML (`dml`) or WebGPU."""
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    """Weights that share a scale. Not set: 32. Smaller blocks usually round better and take more space."""
    accuracy_level: Literal[1, 2, 3, 4] | None = None
    """Lowest accuracy of a quantized layer's activations: 1 float32, 2 float16, 3 bfloat16, 4 int8. Not set: 4 for the
    CPU, 0 for other providers."""
    is_symmetric: bool | None = None
    """Whether the grid of quantized weights is symmetric around 0, without a zero point. Not set: true."""
    op_types_to_quantize: list[Literal["MatMul", "Gather"]] | None = None
    """Kinds of operators to quantize: `MatMul` (linear layers), `Gather` (embeddings)."""
    nodes_to_exclude: list[str] | None = None
    """Nodes of the graph that are not quantized, by name, such as [/lm_head/MatMul]."""
    algo_config: Literal["default", "rtn", "k_quant", "gptq", "auto_round"] | None = None
    """How weights are rounded. `default` and `rtn`: to the nearest value, on two different grids. `k_quant`: scale
    and zero point are fitted to each block. `gptq`: rounding errors are made good by other weights, as training rows
    tell (Frantar et al. 2023). `auto_round`: the rounding is learned from training rows (Cheng et al. 2024), which
    takes several times as long."""
    calibration: Calibration | None = None
    """Settings of `algo_config: gptq` and `auto_round`. Not set: their defaults."""
    matmul_mixed_precision: str | None = None
    """Layers with a precision of their own, as `selector:type` pairs: `last_matmul:int8,mixed_layers:int8`. Selectors:
    last_matmul (the vocabulary head), mixed_layers (the layers that quantization hurts most), linear_attn. Types: int4,
    int8."""
    use_qdq: bool | None = None
    """Write the graph with quantize-dequantize (QDQ) operators instead of the fused MatMulNBits. int4 only."""
    prune_lm_head: bool | None = None
    """Compute the vocabulary head for the last token of the prompt only, which is faster and takes less memory. Not
    set: true."""
    shared_embeddings: bool | None = None
    """Store embeddings and vocabulary head as one weight, for models whose two are the same. slmflow keeps them apart
    where the shared form could not be loaded."""
    score: bool | None = None
    """Whether the build is scored and benchmarked here. Not set: only builds for the CPU. A build that is not scored is
    never selected."""

    @model_validator(mode="after")
    def _buildable(self) -> "Variant":
        valid = VALID_PRECISIONS[self.execution_provider]
        if self.precision not in valid:
            raise ValueError(f"{self.execution_provider} cannot run {self.precision}: use one of {', '.join(valid)}")
        given = [name for name in _QUANTIZED_ONLY if getattr(self, name) is not None]
        if given and self.precision not in ("int4", "int8"):
            raise ValueError(f"{', '.join(given)} only means something with precision int4 or int8")
        if self.matmul_mixed_precision and not re.fullmatch(_MIXED, self.matmul_mixed_precision):
            raise ValueError("matmul_mixed_precision is not of the form last_matmul:int8,mixed_layers:int8")
        return self

    @model_validator(mode="after")
    def _loadable(self) -> "Variant":
        """Refuse what the builder of onnxruntime-genai 0.18.0 refuses, or builds so that nothing can load it."""
        for broken, reason in _find_broken_combinations(self):
            if broken:
                raise ValueError(reason)
        return self

    @model_validator(mode="before")
    @classmethod
    def _calibrated(cls, values: Any) -> Any:
        """Fill in the settings of a method that rounds by training rows."""
        if not isinstance(values, dict) or str(values.get("algo_config")) not in CALIBRATED:
            return values
        given = values.get("calibration") or {}
        if isinstance(given, Calibration):
            given = given.model_dump()
        if not isinstance(given, dict):
            return values
        own = {name: value for name, value in given.items() if value is not None}
        return values | {"calibration": CALIBRATED[values["algo_config"]] | own}

    @property
    def scored(self) -> bool:
        return self.execution_provider == "cpu" if self.score is None else self.score


def _find_broken_combinations(variant: Variant) -> list[tuple[bool, str]]:
    """Return what does not go together, with the reason and the way out."""
    mixed = variant.matmul_mixed_precision or ""
    int8 = variant.precision == "int8" or "int8" in mixed
    head_differs = variant.is_symmetric is False or "last_matmul:int8" in mixed
    calibrated, algo = variant.algo_config in CALIBRATED, variant.algo_config
    given = variant.calibration.model_dump(exclude_none=True) if variant.calibration else {}
    foreign = sorted(given.keys() - CALIBRATED.get(algo or "", {}).keys())
    return [
        (bool(variant.use_qdq) and int8, "use_qdq: the builder writes QDQ for int4 only: leave it out, or int8"),
        (
            bool(variant.shared_embeddings) and head_differs and variant.algo_config in (None, "default"),
            "shared_embeddings: true with is_symmetric: false or an int8 head builds a model that cannot be loaded:"
            " leave shared_embeddings out, or use algo_config k_quant",
        ),
        (
            variant.calibration is not None and not calibrated,
            f"calibration belongs to algo_config: {' or '.join(CALIBRATED)}; the other methods see no rows",
        ),
        (calibrated and bool(foreign), f"calibration.{', '.join(foreign)} is for auto_round and not for {algo}"),
        (calibrated and variant.precision != "int4", f"algo_config: {algo} makes int4 only"),
        (
            calibrated and bool(variant.use_qdq or variant.op_types_to_quantize),
            f"use_qdq and op_types_to_quantize do not go with algo_config: {algo}, whose weights come quantized",
        ),
    ]
