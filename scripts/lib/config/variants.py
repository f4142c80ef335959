"""What a variant may be: the options of one ONNX build, and what of them goes together.

Part of the configuration model (`lib.config.schema`), with what onnxruntime-genai 0.18.0 can build and load.
"""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

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
    """The types in an annotation, those inside unions and `Annotated` too; of a list, not those of its items."""
    if get_origin(annotation) in (Union, UnionType, Annotated, Literal):
        for inner in get_args(annotation):
            yield from _types(inner if get_origin(annotation) is not Literal else type(inner))
    else:
        yield annotation


class Section(BaseModel):
    """Unknown keys are errors; numbers that YAML reads as text (`1e-4`) are read as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic lets pass: true for the number 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float} & set(_types(kind)):
            raise ValueError(f"{str(value).lower()} is no number (YAML reads yes, no, on and off as true and false)")
        return value


class Calibration(Section):
    """How `algo_config: auto_round` learns the rounding: on training rows alone, prompt and answer."""

    rows: Count = 128
    """Training rows, drawn by seed."""
    length: Annotated[int, Field(ge=8, le=_LARGEST)] = 128
    """Tokens of a calibration sequence; rows are put one behind the other and cut into these."""
    iterations: Count = 50
    """Steps of signed gradient descent for each layer of the model."""


class Variant(Section):
    """One ONNX build; the options are those of the onnxruntime-genai builder, by its names."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "int4"
    execution_provider: Literal["cpu", "cuda", "dml", "webgpu", "trt-rtx"] = "cpu"
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    accuracy_level: Literal[1, 2, 3, 4] | None = None
    is_symmetric: bool | None = None
    op_types_to_quantize: list[Literal["MatMul", "Gather"]] | None = None
    nodes_to_exclude: list[str] | None = None
    algo_config: Literal["default", "rtn", "k_quant", "auto_round"] | None = None
    """default, rtn: rounded to the nearest, on two grids. k_quant: each block's scale and zero point fitted.
    auto_round: the rounding is learnt on training rows (Cheng et al. 2024)."""
    calibration: Calibration | None = None
    """For `algo_config: auto_round`; left out: its defaults."""
    matmul_mixed_precision: str | None = None
    """`selector:type` pairs of last_matmul, mixed_layers, linear_attn, such as `last_matmul:int8,mixed_layers:int8`."""
    use_qdq: bool | None = None
    prune_lm_head: bool | None = None
    shared_embeddings: bool | None = None
    score: bool | None = None
    """Score and benchmark it here; default: only the cpu provider. What is not scored is never selected."""

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
        for broken, reason in _broken_combinations(self):
            if broken:
                raise ValueError(reason)
        return self

    @model_validator(mode="before")
    @classmethod
    def _calibrated(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("algo_config") == "auto_round" and not values.get("calibration"):
            return values | {"calibration": Calibration()}
        return values

    @property
    def scored(self) -> bool:
        return self.execution_provider == "cpu" if self.score is None else self.score


def _broken_combinations(variant: Variant) -> list[tuple[bool, str]]:
    """What does not go together, with the reason and the way out."""
    mixed = variant.matmul_mixed_precision or ""
    int8 = variant.precision == "int8" or "int8" in mixed
    head_differs = variant.is_symmetric is False or "last_matmul:int8" in mixed
    calibrated = variant.algo_config == "auto_round"
    return [
        (bool(variant.use_qdq) and int8, "use_qdq: the builder writes QDQ for int4 only: leave it out, or int8"),
        (
            bool(variant.shared_embeddings) and head_differs and variant.algo_config in (None, "default"),
            "shared_embeddings: true with is_symmetric: false or an int8 head builds a model that cannot be loaded:"
            " leave shared_embeddings out, or use algo_config k_quant",
        ),
        (
            variant.calibration is not None and not calibrated,
            "calibration belongs to algo_config: auto_round; the other methods see no rows",
        ),
        (calibrated and variant.precision != "int4", "algo_config: auto_round makes int4 only"),
        (
            calibrated and bool(variant.use_qdq or variant.op_types_to_quantize),
            "use_qdq and op_types_to_quantize do not go with algo_config: auto_round, whose weights come quantized",
        ),
    ]
