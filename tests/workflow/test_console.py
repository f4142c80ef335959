"""`make run` shows one line for each step in words, what scripts say below it, and the time left; a log has the rest."""

import re
import subprocess
import sys
import time

import pytest
import run
from run import Run

from lib.workflow.console import Console
from lib.workflow.steps import STEPS, describe_step
from lib.workflow.time_left import TimeLeft, describe_time, describe_time_left
from support.rules import RULE_SCRIPTS
from support.workspaces import make_workspace

STEP = re.compile(r"\[ *(\d+) of (\d+)\] (.+)")
CORPUS = ["results/corpus/train.jsonl"]
JOBS = {"fetch_data", "fetch_tokenizer", "audit_data", "split_data", "render_corpus"}


def event(kind: str = "", text: str = "", **more) -> dict:
    known = {"event": kind, "text": text, "dry_run": False, "is_problem": False, "is_remote": False, "reason": ""}
    return {**known, "job": None, "rule": None, "wildcards": {}, "log": [], "total": 0, "work": None, **more}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def console(clock):
    console = Console(clock)
    console.show_event(event("run_info", "Job stats:", total=12))
    return console


def start(console, job: int, rule: str, **wildcards) -> list[str]:
    return console.show_event(event("job_info", "rule x:", job=job, rule=rule, wildcards=wildcards))


def test_every_rule_is_told_in_words():
    assert set(STEPS) == set(RULE_SCRIPTS)


def test_words_of_a_step_do_not_act_on_the_terminal():
    assert describe_step("train_adapter", {"run": "a\x1b[2J"}) == "train the adapter (run a\\u001b[2J)"


def test_steps_are_counted_and_timed(console, clock):
    assert start(console, 7, "train_adapter", run="lora") == ["[ 1 of 12] train the adapter (run lora)"]
    assert console.show_line("train_adapter: step 5 of 10") == " " * 11 + "train_adapter: step 5 of 10"
    assert start(console, 8, "check_corpus") == ["[ 2 of 12] check that prompts and answers fit the model"]
    clock.now = 200
    assert console.show_event(event("job_finished", job=7)) == [
        " " * 11 + "done in 3 min 20 s: train the adapter (run lora)"
    ]
    assert console.show_event(event("job_finished", job=8)) == [" " * 11 + "done in 3 min 20 s"]
    assert start(console, 9, "all") == []
    assert console.show_event(event("job_finished", job=9)) == []
    start(console, 10, "split_data")
    assert console.show_event(event("job_finished", job=10)) == [], "a short step is one line"


def test_what_an_executor_says_of_jobs_elsewhere_is_shown(console):
    start(console, 7, "train_adapter", run="lora")
    said = console.show_event(event("", "Cancelling 1 jobs of Azure Machine Learning ...", is_remote=True))
    assert said == [" " * 11 + "Cancelling 1 jobs of Azure Machine Learning ..."]
    reason = "Azure Machine Learning: Failed. Out of memory"
    failed = console.show_event(event("job_error", "Error in rule x:", job=7, is_problem=True, reason=reason))
    assert failed[1:] == [" " * 11 + "Azure Machine Learning: Failed. Out of memory"]
    assert console.show_event(event("", "Select jobs to execute...")) == []


def test_a_failed_step_names_its_log_and_keeps_its_number(console, clock):
    start(console, 7, "train_adapter", run="lora")
    clock.now = 3
    failed = console.show_event(event("job_error", "Error in rule x:", job=7, log=["logs/lora.txt"], is_problem=True))
    assert failed == [
        "[ 1 of 12] failed after 3 s: train the adapter (run lora)",
        " " * 11 + "its log: logs/lora.txt",
    ]
    assert start(console, 7, "train_adapter", run="lora") == ["[ 1 of 12] train the adapter (run lora), once more"]


def test_problems_are_shown_in_full_and_talk_is_not(console):
    assert console.show_event(event(text="a\nb", is_problem=True)) == ["a", "b"]
    assert console.show_event(event("error", "WorkflowError:\n  x", is_problem=True)) == ["WorkflowError:", "  x"]
    for text in ("Shutting down, this might", "WorkflowError:\nAt least one job did not complete successfully."):
        routine = text.replace("might", "might take some time.")
        assert console.show_event(event(text=routine, is_problem=True)) == []
    assert console.show_event(event(text="Select jobs to execute...")) == []
    assert console.show_event(event("shellcmd", "exec python x")) == []


def test_lines_that_no_script_says_are_not_indented(console):
    start(console, 1, "fetch_data")
    assert console.show_line("report   results/report.html") == "report   results/report.html"


def test_without_a_run_snakemakes_answer_is_shown_at_the_end():
    console = Console()
    assert console.show_event(event(text="all\nevidence")) == []
    assert console.end() == ["all", "evidence"]
    assert Console().show_event(event(text="Nothing to be done (all)")) == ["Nothing to be done (all)"]


def test_a_dry_run_has_snakemakes_own_words():
    console = Console()
    assert console.show_event(event("run_info", "Job stats:", total=3, dry_run=True)) == ["Job stats:"]
    assert console.show_event(event("job_info", "rule x:\n  input: y", job=1, dry_run=True)) == [
        "rule x:",
        "  input: y",
    ]
    assert not console.is_run


def test_time_left_follows_from_what_finished_jobs_took():
    times = TimeLeft(work={1: 0.0, 2: 100.0, 3: 300.0, 4: 0.0}, rules={1: "a", 2: "b", 3: "c", 4: "d"})
    assert times.estimate({}, {}, 0) is None, "nothing is known yet"
    times.finish(1, 4.0)
    assert times.estimate({}, {}, 4) is None, "how fast this machine works is not known"
    times.finish(2, 54.0)  # 50 s of work for 100 expected
    assert times.estimate({}, {}, 58) == pytest.approx(4 + 150 + 4)
    assert times.estimate({3: 60.0}, {}, 118) == pytest.approx(4 + 150 - 60 + 4)
    assert times.estimate({3: 999.0}, {}, 1057) == pytest.approx(4), "no job takes less than nothing"
    assert times.estimate({3: 60.0}, {3: 30.0}, 118) == pytest.approx(30 + 4), "its script knows better"
    assert times.estimate({3: 58.0}, {}, 58) == pytest.approx((4 + 150 - 58 + 4) / 2), "two at a time"
    assert TimeLeft(work=dict(times.work), taken={1: 4.0, 2: 54.0, 3: 9.0, 4: 1.0}).estimate({}, {}, 68) is None


def test_time_left_is_unknown_while_the_rows_of_a_job_are_not_there():
    times = TimeLeft(work={1: 0.0, 2: None}, rules={1: "a", 2: "b"}, taken={1: 4.0})
    assert times.estimate({}, {}, 4) is None
    times = TimeLeft(work={1: 100.0, 2: None}, rules={1: "b", 2: "b"}, taken={1: 40.0})
    assert times.estimate({}, {}, 40) == 40, "its rule has been seen"


def test_the_time_that_a_script_says_counts(console, clock):
    console.show_event(event("job_started", work={"1": ["fetch_data", 0.0], "2": ["train_adapter", 900.0]}))
    start(console, 1, "fetch_data")
    start(console, 2, "train_adapter", run="lora")
    clock.now = 60
    console.show_line("train_adapter: step 5 of 10, training loss 1.0, about 5 min left")
    assert console.show_event(event("job_finished", job=1)) == [
        " " * 11 + "done in 1 min 0 s: read the rows; about 2 minutes left"  # two jobs at a time
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.4, "4 s"), (59.7, "1 min 0 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")],
)
def test_a_time_is_told_as_people_do(seconds, said):
    assert describe_time(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (30, "less than a minute left"),
        (70, "about 1 minute left"),
        (700, "about 12 minutes left"),
        (7_000, "about 2 hours left"),
    ],
)
def test_time_left_is_told_no_more_exactly_than_it_is_known(seconds, said):
    assert describe_time_left(seconds) == said


def make_run(workspace, *arguments: str) -> subprocess.CompletedProcess:
    """As `make run` in a terminal, standard error in the same file."""
    command = [sys.executable, "scripts/run.py", *arguments]
    return subprocess.run(
        command, cwd=workspace.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def ran(tiny_llama, tmp_path_factory):
    """A workspace, and what `make run` says of its data stages."""
    workspace = make_workspace(tmp_path_factory.mktemp("console") / "work space", tiny_llama)
    return workspace, make_run(workspace, *CORPUS)


@pytest.mark.workflow
def test_a_run_has_one_line_for_each_step(ran):
    workspace, done = ran
    assert done.returncode == 0, done.stdout
    steps = [found.groups() for line in done.stdout.splitlines() if (found := STEP.fullmatch(line))]
    assert [number for number, _, _ in steps] == list("12345")
    assert {total for _, total, _ in steps} == {"5"}
    assert {words for _, _, words in steps} == {STEPS[rule] for rule in JOBS}
    assert " audit_data: 120 of 120 rows kept" in done.stdout
    assert "scripts/lib" not in done.stdout, "no paths of modules"
    assert [sign for sign in done.stdout if not sign.isprintable() and sign != "\n"] == []

    last = done.stdout.splitlines()[-1]
    log = (workspace.root / last.removeprefix("complete log: ")).read_text()
    assert "scripts/lib/core/cli.py" in log, "Snakemake's own output"
    assert "Building DAG of jobs" in log
    assert "Finished jobid" in log
    assert "audit_data: 120 of 120 rows kept" in log


@pytest.mark.slow
@pytest.mark.workflow
def test_options_of_snakemake_still_do_what_they_do(ran):
    workspace, _ = ran
    logs = set(workspace.root.glob(".snakemake/log/*.run.log"))
    again = make_run(workspace, *CORPUS)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout
    dry = make_run(workspace, "-n", "--quiet", "progress", "-F", "--", *CORPUS)
    assert dry.returncode == 0, dry.stdout
    assert set(re.findall(r"^(?:local)?rule (\w+):", dry.stdout, flags=re.MULTILINE)) == JOBS
    listed = make_run(workspace, "--list-rules")
    assert listed.returncode == 0
    assert {*RULE_SCRIPTS, "all"} <= set(listed.stdout.split())
    unknown = make_run(workspace, "no-such-target")
    assert unknown.returncode == 1
    assert "no-such-target" in unknown.stdout.splitlines()[-1]
    assert set(workspace.root.glob(".snakemake/log/*.run.log")) == logs, "nothing ran"
    quiet = make_run(workspace, "--force", "--quiet", "progress", "--", "results/data/rows.jsonl")
    assert quiet.returncode == 0, quiet.stdout
    assert "[1] read the rows\n" in quiet.stdout
    assert quiet.stdout.splitlines()[-1].startswith("complete log: ")


@pytest.mark.workflow
def test_the_error_of_a_failed_step_is_shown_once(ran):
    workspace, _ = ran
    rows = workspace.rows.read_text()
    workspace.rows.write_text(rows + "]")
    try:
        done = make_run(workspace, "results/data/rows.jsonl")
    finally:
        workspace.rows.write_text(rows)
    assert done.returncode == 1
    lines = done.stdout.splitlines()[1:]  # the first names the profile
    assert len([line for line in lines if "error: rows.json" in line]) == 1, done.stdout
    assert re.fullmatch(r"\[1 of 1\] failed after \d+ s: read the rows", lines[1]), done.stdout
    assert lines[2].strip() == "its log: results/logs/fetch_data/log.txt"
    assert lines[4].startswith("error: rows.json")
    assert lines[6].startswith("complete log: .snakemake/log/")
    assert len(lines) == 7


def test_a_step_that_dies_without_a_word_is_explained(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = Run()
    said.take_event(event("run_info", "Job stats:", total=3))
    said.take_event(event("job_info", "rule x:", job=1, rule="fetch_data"))
    said.take_event(event("error", "RuleException:\nCommand died with SIGKILL", is_problem=True))
    said.take_event(event("job_error", "Error in rule x:\n(…)", job=1, log=["log.txt"], is_problem=True))
    said.take_event(event(text="Shutting down, this might take some time.", is_problem=True))
    said.end(1)
    out, err = capfd.readouterr()
    assert "Command died with SIGKILL" in out
    assert err.strip() == "error: the workflow stopped: [1 of 3] failed after 0 s: read the rows; see above"
    assert "Error in rule x:" in next(tmp_path.glob(".snakemake/log/*.run.log")).read_text()


def test_an_error_is_shown_before_other_lines_and_repeated_last(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = Run()
    said.take_event(event("run_info", "Job stats:", total=3))
    said.take_event(event("job_info", "rule x:", job=1, rule="fetch_data"))
    said.take_line("error: rows.json: not there")
    assert "error" not in capfd.readouterr().out
    said.take_event(event("job_info", "rule y:", job=2, rule="fetch_model"))
    assert [line.strip() for line in capfd.readouterr().out.splitlines()] == [
        "error: rows.json: not there",
        "[2 of 3] fetch the base model",
    ]
    said.end(1)
    assert capfd.readouterr().err.strip() == "error: rows.json: not there"


def test_the_error_of_a_step_elsewhere_is_found_in_its_log(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = Run()
    said.take_event(event("run_info", "Job stats:", total=3))
    said.take_event(event("job_info", "rule x:", job=1, rule="fetch_data"))
    text = "Error in rule x:\nLogfile log.txt:\n====\nerror: rows.json: not there\n===="
    said.take_event(event("job_error", text, job=1, log=["log.txt"], is_problem=True))
    said.end(1)
    out, err = capfd.readouterr()
    assert out.count("error: ") == 0
    assert err.strip() == "error: rows.json: not there"


def test_an_error_of_an_attempt_that_was_repeated_is_shown(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = Run()
    said.take_line("error: the network is gone")
    said.end(0)
    assert capfd.readouterr().out.strip() == "error: the network is gone"


def command_lines() -> list[str]:
    return subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True).stdout.splitlines()


@pytest.mark.workflow
def test_without_the_program_that_shows_and_locks_it_no_further_step_starts(ran):
    workspace, _ = ran
    process = subprocess.Popen(
        [sys.executable, str(workspace.root / "scripts/run.py"), "--forceall", *CORPUS],
        cwd=workspace.root,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while not STEP.match(process.stdout.readline()):
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    folder = str(workspace.root)
    deadline = time.monotonic() + 60
    while any(folder in line and "snakemake_events" in line for line in command_lines()):
        assert time.monotonic() < deadline, "Snakemake goes on"
        time.sleep(0.1)
    log = max(workspace.root.glob(".snakemake/log/*.snakemake.log"), key=lambda file: file.name).read_text()
    assert re.search(r"rule fetch_\w+:", log), "whichever came first"
    assert "rule render_corpus" not in log
    again = make_run(workspace, *CORPUS)
    assert again.returncode == 0, again.stdout


def test_an_error_does_not_wait_for_other_lines(monkeypatch):
    monkeypatch.setattr(run, "_PATIENCE", 0.05)

    def slow():
        yield "error: x"
        time.sleep(0.5)

    seen = list(run.merge(output=slow(), events=[]))
    assert seen[:2] == [("output", "error: x"), ("", "")]
