"""A packaged model in Foundry Local's SDK, offline, against predict.py: `make test-foundry`.

The SDK has an environment of its own, since it pins another ONNX Runtime; this script runs there by --ask and else in the
project's. It registers the folder, loads it, and asks through the folder's chat template, in a network namespace without
a network where the machine allows that. Free answers must be those of predict.py, control tokens left out, which the SDK
does not show.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TEXTS = [f"{who} {what} {how}." for who in ("She", "The old dog", "Nobody") for what in ("cried", "came home")
         for how in ("again", "in the morning", "and laughed")]  # fmt: skip
TOKENS = 4


def ask(folder: str, scratch: str) -> list[str]:
    """Return the answers to all texts, and why a system turn is refused."""
    import foundry_local_sdk as foundry

    places = {name: f"{scratch}/{name}" for name in ("app_data_dir", "model_cache_dir", "logs_dir")}
    configuration = foundry.Configuration(app_name="slmflow", disable_nonessential_telemetry=True, **places)
    foundry.FoundryLocalManager.initialize(configuration)
    catalog = foundry.FoundryLocalManager.instance.get_catalog(foundry.CatalogType.LOCAL)
    metadata = foundry.ModelInfoBuilder()
    metadata.set_string_property("task", "chat-completion")
    model = catalog.register_model(folder, "tones:1", metadata)
    model.load()
    client = model.get_chat_client()
    client.settings.max_tokens = TOKENS
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    answers = [client.complete_chat(one).choices[0].message.content for one in turns]
    try:
        client.complete_chat([{"role": "system", "content": "x"}, *turns[0]])
    except Exception as error:  # the SDK's own class
        return [*answers, str(error)]
    return [*answers, "a system turn was accepted"]


def expect(model: Path) -> list[str]:
    """Return the first tokens of the answers of predict.py's own reader, control tokens left out."""
    import tokenizers

    from lib.onnx.packaged import load_packaged_tokenizer, read_packaged_template
    from lib.onnx.runtime import Reader, load_onnx
    from lib.serving.inputs import Input, render_fitting_prompt

    template, tokenizer = read_packaged_template(model), load_packaged_tokenizer(model, [])
    reader = Reader(load_onnx(model, 1), 200)
    shown = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    answers = []
    for text in TEXTS:
        row = {"text": text}
        reader.read(tokenizer.encode(render_fitting_prompt(Input(row, "text"), row, template, tokenizer)))
        ids = [id_ for id_ in reader.answer(TOKENS) if id_ not in tokenizer.end_ids]
        answers.append(shown.decode(ids, skip_special_tokens=True))
    return answers


def main(python: str) -> None:
    from lib.provenance.manifests import write_manifest
    from support.served import package_models
    from support.tiny_models import make_tiny_phi3

    with tempfile.TemporaryDirectory() as scratch:
        base = make_tiny_phi3(Path(scratch) / "base")
        write_manifest(base, inputs={}, settings={})
        model = package_models(Path(scratch), base)["free"]
        alone = ["unshare", "-n"] if shutil.which("unshare") else []
        command = [*alone, python, __file__, "--ask", str(model), scratch]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *answers, refusal = json.loads(done.stdout.splitlines()[-1])
        assert "this model was trained on one question" in refusal, refusal
        # A random model also says bytes that are no text, which each library shows in its own way.
        pairs = [(one, other) for one, other in zip(answers, expect(model), strict=True) if other.isascii()]
        assert len(pairs) >= 5
        assert [one for one, _ in pairs] == [other for _, other in pairs]
    print(f"Foundry Local registered the folder offline; {len(pairs)} answers are those of predict.py", file=sys.stderr)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--python", help="Python of the environment with Foundry Local's SDK")
    arguments.add_argument("--ask", nargs=2, metavar=("MODEL", "SCRATCH"), help="only ask, in that environment")
    given = arguments.parse_args()
    if given.ask:
        print(json.dumps(ask(*given.ask)))
    else:
        main(given.python)
