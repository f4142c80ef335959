"""Snakemake, as `make run` starts it: what it logs goes as JSON lines to the file descriptor $SLMFLOW_EVENTS.

It is Snakemake's command line with a logger plugin of our own, `slmflow`, which needs no installation. Output of
scripts, and what is printed without the logger, goes where it always goes. `lib.workflow.console` shows both.
"""

import json
import logging
import os
import sys
from typing import Any

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are none of Snakemake's

from snakemake.cli import main
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

EVENTS = "SLMFLOW_EVENTS"
_PLUGIN = "slmflow"


class LogHandler(LogHandlerBase):
    """Writes each record, with the text that Snakemake would show, as one JSON line."""

    writes_to_stream = True  # instead of Snakemake's own
    writes_to_file = has_filter = has_formatter = needs_rulegraph = False

    def __post_init__(self) -> None:
        self._file = os.fdopen(_descriptor, "w", encoding="utf-8", errors="replace", closefd=False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) or ""
            event = describe_record(record, text if text != "None" else "", self.common_settings.dryrun)
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
        except BrokenPipeError:  # `make run` is dead, and with it its lock of this folder: no further job may start
            os._exit(1)
        except Exception:
            self.handleError(record)


def describe_record(record: logging.LogRecord, text: str, dry_run: bool) -> dict[str, Any]:
    """Return what the console needs of a record."""
    known = vars(record)
    job = known.get("jobid", known.get("job_id"))
    stats = known.get("stats") or {}
    return {
        "event": str(known["event"]) if known.get("event") else "",
        "text": text,
        "dry_run": bool(dry_run),
        "is_problem": record.levelno >= logging.WARNING,
        "is_remote": "snakemake_executor_plugin" in record.pathname,  # said by what sends the jobs elsewhere
        "job": job,
        "rule": known.get("rule_name"),
        "wildcards": {name: str(value) for name, value in (known.get("wildcards") or {}).items()},
        "reason": (known.get("rule_msg") or "").strip(),  # of a failed job: what a scheduler or service says
        "log": [str(file) for file in known.get("log") or []],
        "total": stats.get("total", 0) - stats.get("all", 0) - stats.get("evidence", 0),
        "work": known.get("work"),
    }


if __name__ == "__main__":
    sys.argv[0] = "snakemake"
    if EVENTS in os.environ:
        _descriptor = int(os.environ.pop(EVENTS))
        os.set_inheritable(_descriptor, False)
        LoggerPluginRegistry().register_plugin(f"snakemake_logger_plugin_{_PLUGIN}", sys.modules[__name__])
        sys.argv.insert(1, f"--logger={_PLUGIN}")
    main()
