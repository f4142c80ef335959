"""Models with another tokenizer; no torch, since tests of memory import it."""

import json


def changed_tokenizer(base, tmp_path, /, **parts):
    """The folder of a model with other parts in its tokenizer.json."""
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    content = json.loads((base / "tokenizer.json").read_text())
    model_part = {**content["model"], **parts.pop("model", {})}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "model": model_part, **parts}))
    return tmp_path


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}
