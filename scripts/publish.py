"""Upload what ships, or the weights behind it, to a Hugging Face hub; without --upload only say what would go where.

    python scripts/publish.py --repo owner/name                         what would be uploaded: results/model
    python scripts/publish.py --repo owner/name --upload                upload it, into a private repository
    python scripts/publish.py --repo owner/name --what adapter --upload

A model whose gate failed is refused unless --despite-gate says so. The token is that of HF_TOKEN, with write access.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.core.cli import call_or_exit, fail, report_progress
from lib.core.escaping import escape_controls
from lib.core.files import read_json
from lib.core.paths import resolve_below
from lib.provenance.manifests import build_manifest_path, link_files, load_manifest, read_manifest
from lib.report.hub_card import render_hub_metadata

_RELATIONS = {"model": "quantized", "merged": "finetune", "adapter": "adapter"}
_LONGEST_LIST = 20


def main(args: argparse.Namespace) -> None:
    check_gate(args.results, args.despite_gate)
    with tempfile.TemporaryDirectory(dir=args.results) as scratch:
        folder = Path(scratch) / "upload"
        folder.mkdir()
        gather_files(args.results, args.what, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) / 1e6
        names = [path.relative_to(folder).as_posix() for path in files]
        more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
        kind = "public" if args.public else "private"
        print(escape_controls(f"{args.what} -> {args.repo} ({kind}): {len(files)} files, {size:.1f} MB"))
        print(escape_controls(f"  {', '.join(names[:_LONGEST_LIST])}{more}"))
        ended = "nothing was uploaded; add --upload"
        if args.upload:
            ended = f"uploaded as {upload(folder, args.repo, public=args.public, message=args.message)}"
        print(escape_controls(ended))


def check_gate(results: Path, despite_gate: bool) -> None:
    """Raise `UserError` unless the gate passed, or whoever publishes knows that it did not."""
    gate = read_json(results / "gate.json", hint="run the workflow to its end")
    if not gate["passed"] and not despite_gate:
        failed = ", ".join(str(check["name"]) for check in gate["checks"] if not check["passed"])
        fail(f"the model missed its gate ({failed})", "mend it, or add --despite-gate", at=results / "gate.json")


def gather_files(results: Path, what: str, folder: Path) -> None:
    """Link the files to upload into an empty folder, with a card. Raises `UserError` for what is not there."""
    if what == "model":
        model = results / "model"
        link_files(model, read_manifest(model)["files"], folder)
        return
    selected = results / "selected"
    names = [name for name in read_manifest(selected)["files"] if name.startswith(f"{what}/")]
    if not names:
        fail(f"there is no {what} in it", "this run has none: publish another part", at=selected)
    with tempfile.TemporaryDirectory(dir=results) as scratch:
        link_files(selected, names, Path(scratch))
        resolve_below(Path(scratch), what, at=selected).rename(folder / what)
    for path in list((folder / what).iterdir()):
        path.rename(folder / path.name)
    (folder / what).rmdir()
    (folder / "README.md").write_text(render_part_card(results, what), encoding="utf-8")


def render_part_card(results: Path, what: str) -> str:
    """Return the card of an adapter or merged model: what hubs read, and where the numbers are."""
    settings: dict[str, Any] = load_manifest(build_manifest_path(results / "assembled"))["made_by"]
    summary = read_json(results / "summary.json")
    metadata = render_hub_metadata(settings, summary, _RELATIONS[what])
    text = f"# The {what} behind a small language model for {settings['task']}\n\nMade by slmflow. "
    if what == "merged":
        text += "`chat_template.jinja` renders the trained prompt from one turn of the user. "
    return f"{metadata}{text}The packaged int4 model has the scores.\n"


def upload(folder: Path, repo: str, *, public: bool, message: str) -> str:
    """Upload a folder as one commit; returns its address. Raises `UserError` when the hub refuses."""
    from huggingface_hub import HfApi

    from lib.sources.huggingface import read_hub_token

    api = HfApi(token=read_hub_token())
    with explain_refusal(repo):
        api.create_repo(repo, private=not public, exist_ok=True)
        report_progress(f"uploading to {api.endpoint}/{repo}")
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
        there = {entry.path: getattr(entry, "size", None) for entry in api.list_repo_tree(repo, recursive=True)}
    if missing := [name for name, size in sizes.items() if there.get(name) != size]:
        fail(f"{missing[0]} did not arrive whole at {repo}", "start again")
    return str(commit.commit_url)


@contextmanager
def explain_refusal(repo: str) -> Iterator[None]:
    """Turn the hub's errors into `UserError`s that say what to do."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HFValidationError:
        fail(f"{repo!r} is not the name of a repository", "write it as owner/name")
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "set HF_TOKEN to a token that may write there" if status in (401, 403) else "start again later"
        fail(f"the hub refuses {repo} (HTTP {status})", hint)
    except httpx2.TransportError as error:
        fail(f"the hub cannot be reached ({type(error).__name__})", "check the network and HF_ENDPOINT")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--repo", required=True, help="owner/name")
    arguments.add_argument("--what", choices=sorted(_RELATIONS), default="model", help="default: model")
    arguments.add_argument("--results", type=Path, default=Path("results"), help="default: results")
    arguments.add_argument("--upload", action="store_true", help="upload, instead of only saying what would go where")
    arguments.add_argument("--public", action="store_true", help="everybody may read a repository that is created")
    arguments.add_argument("--despite-gate", action="store_true", help="publish a model that missed its gate")
    arguments.add_argument("--message", default="Upload a model of slmflow", help="of the commit")
    call_or_exit(main, arguments.parse_args())
