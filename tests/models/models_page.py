"""Write docs/models.md from the outcomes of the families: `make models`."""

import json
import re

from models.families import FAMILIES, Family

from support.paths import ROOT

PAGE = ROOT / "docs/models.md"
OUTCOMES = ROOT / "tests/models/outcomes.json"
# Upgraded, any of these may change what works.
LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "onnxruntime", "onnxruntime-genai")
_INTRODUCTION = """\
# Base models that work

Before any weight is fetched, slmflow tries a small random model of the base model's kind, made from its `config.json`:
the same kinds of layers in their order, the same flags and factors, but two layers, or as many as show every kind, a hidden size
of about 256 and 960 tokens.

- `check_training` trains it for two steps with the methods of the configuration, merges it, and compares batched scores
  with the score of each text alone.
- `check_build` looks the architecture up in the installed builder's list, computes from the true sizes whether
  blocks and heads fit, builds the small model in float32 and as each variant says, and compares it with transformers:
  logits within a sliding window and far behind it, log probabilities of answers, what it writes. The variant's own
  build must give the logits of the weights that it holds.

A model that fails is refused in one line with the reason. The checks take some seconds for each variant, and their
results are in `results/checks/`. A new variant is checked and built; nothing is trained again. What they cannot see:
whether a large model is good, how much memory it needs, and faults that show only with trained weights or in long texts.

Where the configuration lies in the same file as the weights (GGUF), that file is fetched first.

## Families

Each family below ran through the tests, as a small random model with the configuration, the kind of tokenizer and the
chat template that its repository on the hub has: from rows to `predict.py`, by the scripts of the rules (`make
test-models`). No weights of these models were downloaded, so nothing is said of their quality. The last column is the
largest difference of a label's log probability between the merged model in PyTorch and its float32 build.
"""
_END = """
Not in the table: architectures that the builder does not list, such as Falcon, Cohere, Mixtral or DeepSeek, are refused
in the same way, and so are models that need code of their own. A family that is missing is one entry in
`tests/models/families.py`; `make models` runs all of them and writes this page.
"""


def write_page() -> str:
    """Return the page."""
    found = json.loads(OUTCOMES.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    rows = [(family, found["families"][family.name]) for family in FAMILIES]
    works = [(family, one) for family, one in rows if one["outcome"] == "works"]
    refused = [(family, one) for family, one in rows if one["outcome"] != "works"]
    lines = [f"Tried with {versions}.", "", f"{len(works)} work:", ""]
    lines += ["| tried as | architecture | what to know | difference |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {family.model} | {family.config['architectures'][0]} | {'; '.join(list_notes(family))} |"
        f" {one['facts']['log_probs']:.0e} |"
        for family, one in works
    ]
    lines += ["", f"{len(refused)} are refused, with this line:", "", "| tried as | line |", "| --- | --- |"]
    lines += [f"| {family.model} | {shorten(one['reason'], family)} |" for family, one in refused]
    return _INTRODUCTION + "\n" + "\n".join(lines) + "\n" + _END


def list_notes(family: Family) -> list[str]:
    """Return what a user of a family has to know."""
    notes, template = [], family.template or ""
    if family.prefix:
        notes.append("multimodal: its text part is taken")
    if family.template is None:
        notes.append("no chat template: `corpus.text_template`")
    elif not family.chats:
        notes.append("its chat template cannot be trained: `corpus.text_template`")
    if "strftime_now" in template and "strftime_now is defined" not in template:
        notes.append("asks for a date: `corpus.chat_date`")
    if family.options:
        options = ", ".join(f"{name}: {str(value).lower()}" for name, value in family.options.items())
        notes.append(f"thinks unless `corpus.chat_options: {{{options}}}`")
    if family.template and not family.system:
        notes.append("takes no `corpus.system`")
    text = family.config.get("text_config") or family.config
    first = text.get("original_max_position_embeddings")
    if first and first < text["max_position_embeddings"]:
        notes.append(f"up to {first:,} tokens, beyond which other RoPE factors hold")
    if scaled := (text.get("rope_parameters") or {}).get("llama_4_scaling_beta"):
        assert scaled
        notes.append(f"at most {text['rope_parameters']['original_max_position_embeddings']:,} tokens")
    if text.get("sliding_window") and text.get("use_sliding_window", True):
        notes.append("has a sliding window, which rows may exceed")
    return notes


def shorten(reason: str, family: Family) -> str:
    """Return a refusal without the name and without what to do, which is the same for all."""
    said = reason.removeprefix(f"{family.model}: ").partition("; take ")[0]
    return re.sub(r"\s+", " ", said).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
