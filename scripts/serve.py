"""Serve packaged models over HTTP, with a page to try them.

    python scripts/serve.py --model results/model
    python scripts/serve.py --model demo=results/model --model tones=results-tones/model --port 9000

On this machine alone unless --host says otherwise, which then needs an API key in the variable SLMFLOW_API_KEY. Speaks
/v1/chat/completions, /v1/models, /v1/decisions, /v1/systemone and /classify, has /health and /metrics, and a page at /.
"""

import argparse
import os
import socket
from pathlib import Path

from lib.core.cli import call_or_exit, fail, report_progress
from lib.core.files import read_json
from lib.core.paths import check_bare_name

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BACKLOG = 2048  # connections that wait to be accepted; uvicorn's own number


def main(args: argparse.Namespace) -> None:
    import uvicorn

    from lib.serving.app import Limits, build_app
    from lib.serving.worker import ServedModel

    named = name_models(args.model)
    api_key = os.environ.get("SLMFLOW_API_KEY") or None
    if args.host not in _LOOPBACK and not api_key:
        fail(f"{args.host} can be reached from elsewhere", "set SLMFLOW_API_KEY to a key that clients must send")
    for folder in named.values():
        check_gate(folder, args.despite_gate)
    listening = open_port(args.host, args.port)
    options = {"threads": args.threads, "most_waiting": args.most_waiting}
    models = {name: ServedModel(name, folder, **options) for name, folder in named.items()}
    limits = Limits(body=args.max_body_kb << 10, seconds=args.timeout)
    hosts = [*_LOOPBACK[:2], "[::1]"] if args.host in _LOOPBACK else ["*"]
    config = uvicorn.Config(
        build_app(models, limits, api_key, hosts),
        log_level="warning",
        server_header=False,
        limit_concurrency=args.most_connections,
        timeout_keep_alive=5,
    )
    host, port = listening.getsockname()[:2]
    report_progress(f"serving {', '.join(named)} at http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(config).run(sockets=[listening])


def name_models(given: list[str]) -> dict[str, Path]:
    """Return the folders by name: NAME=FOLDER, or the name of the run's results folder. Raises `UserError`."""
    named: dict[str, Path] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        path = Path(folder if sign else text)
        if not path.is_dir():
            fail("no such folder", "name the folder that package_model wrote", at=path)
        name = check_bare_name(name if sign else path.resolve().parent.name, at="--model")
        if name in named:
            fail(f"two models are called {name}", "name them: --model NAME=FOLDER")
        named[name] = path
    return named


def check_gate(folder: Path, despite_gate: bool) -> None:
    """Raise `UserError` for a model that missed its gate, where the gate lies beside it as the workflow leaves it."""
    gate = folder.resolve().parent / "gate.json"
    if gate.is_file() and not despite_gate and not read_json(gate)["passed"]:
        fail("the model missed its gate", "mend it, or add --despite-gate", at=gate)


def open_port(host: str, port: int) -> socket.socket:
    """Return a listening socket: who connects before the models are loaded waits, and no other server gets the port.

    Raises `UserError` when the port is taken or not to be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        fail(f"port {port} of {host} cannot be used ({error.strerror or error})", "give another --port")
    return listening


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--model", action="append", required=True, metavar="[NAME=]FOLDER", help="a packaged model; may be repeated"
    )
    arguments.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    arguments.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each model; default: all cores")
    arguments.add_argument("--max-body-kb", type=int, default=1024, help="largest request; default: 1024")
    arguments.add_argument("--timeout", type=float, default=60.0, help="seconds for an answer; default: 60")
    arguments.add_argument("--most-waiting", type=int, default=1024, help="rows that wait at most; default: 1024")
    arguments.add_argument("--most-connections", type=int, default=256, help="at once; default: 256")
    arguments.add_argument("--despite-gate", action="store_true", help="serve a model that missed its gate")
    call_or_exit(main, arguments.parse_args())
