"""The fine-tuning methods, each declared once: how peft makes its layers, and what it does to the base weights.

To add a method, write its entry here and its name at `finetune.method` (`lib.config.training`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    title: its name in texts. has_adapter: whether an adapter is trained. peft: arguments of peft's `LoraConfig` beside
    rank, scale, dropout and layers. quantizes_base: the frozen base is kept in 4 bits while training, so that the
    adapter fits two sets of base weights: the original ones, and what the 4 bits stand for. options: keys of `finetune`
    that it alone uses.
    """

    title: str
    has_adapter: bool = True
    peft: Mapping[str, Any] = field(default_factory=dict)
    quantizes_base: bool = False
    options: tuple[str, ...] = ()

    def pick_options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the settings in `finetune` that this method alone uses."""
        return {name: settings[name] for name in self.options}


METHODS = {
    "lora": Method("LoRA"),  # Hu et al. 2021
    "qlora": Method("QLoRA", quantizes_base=True, options=("quant_type", "double_quant")),  # Dettmers et al. 2023
    "dora": Method("DoRA", peft={"use_dora": True}),  # Liu et al. 2024
    "rslora": Method("rsLoRA", peft={"use_rslora": True}),  # Kalajdzievski 2023
    "loraplus": Method("LoRA+", options=("loraplus_lr_ratio",)),  # Hayou et al. 2024
    "none": Method("no fine-tuning", has_adapter=False),
}


def find_title(adapter: Mapping[str, Any]) -> str:
    """Return the title of the method that made an adapter, as far as peft's configuration of it tells: `DoRA`."""
    for method in METHODS.values():
        if method.peft and all(adapter.get(name) == value for name, value in method.peft.items()):
            return method.title
    return METHODS["lora"].title


def choose_quantization(settings: Mapping[str, Any]) -> Any:
    """Return how the base is kept in 4 bits (`lib.models.loading.Quantization`); None for a method that does not.

    settings: of the section `finetune`.
    """
    method = METHODS[settings["method"]]
    return method.pick_options(settings) if method.quantizes_base else None
