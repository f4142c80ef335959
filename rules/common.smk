"""What the rules share: files of the user and of the project, settings, resources."""

from lib.core.files import dump_canonical_json
from lib.hardware import resources
from lib.provenance.code_closure import find_code_closure
from lib.training.methods import choose_quantization
from lib.workflow.helpers import choose_environment_file, find_path, list_data_files
from lib.workflow.job_inputs import describe_data_input, describe_model_input
from lib.workflow.job_resources import (
    count_data_threads,
    count_processes,
    estimate_data_memory,
    estimate_data_minutes,
    grow_memory,
    reserve_gpus,
    estimate_score_minutes,
    measure_mb,
)
from lib.workflow.modules import is_made, name_rule
from lib.workflow.rule_settings import (
    drop_nulls,
    join_settings,
    name_quantization_package,
    omit_keys,
    select_keys,
)
from lib.workflow.stages import (
    expand_runs,
    list_manifests,
    list_trial_methods,
    select_calibration,
)


def user_path(path, key, made=frozenset()):
    """A path from the configuration; it exists on this machine only. made: paths that a rule makes."""
    if MODULE and str(HOME / path) not in made and not Path(HOME, path).exists():
        made = {path}  # by a rule of the other workflow, or Snakemake misses it
    if workflow.is_main_process or not STORED:
        path = call_or_exit(find_path, path, HOME, key, made)
    return ancient_in_remote_job(local_file(path))


TWEETS = local_file(str(HOME / "data/raw/tweets.json"))
# Of several modules one fetches them for all.
FETCHED_TWEETS = f"{R}/data/tweets.json" if is_made(workflow, TWEETS) else TWEETS
# Files, each with its split or nothing; on another machine patterns stay what they are, since nothing lies there.
DATA_SPLITS = dict(
    call_or_exit(list_data_files, CONFIG.data.every_file, CONFIG.data.splits, HOME)
    if workflow.is_main_process or not STORED
    else []
)
DATA_FILES = [user_path(name, "data.files", {TWEETS}) for name in DATA_SPLITS]
MODEL_PATH = CONFIG.base_model.path and user_path(
    CONFIG.base_model.path, "base_model.path"
)
ADAPTER_PATH = CONFIG.finetune.adapter and user_path(
    CONFIG.finetune.adapter, "finetune.adapter"
)
MERGED_PATH = CONFIG.finetune.merged and user_path(
    CONFIG.finetune.merged, "finetune.merged"
)


def script(name):
    return project_file(str(HOME / "scripts" / f"{name}.py"))


def modules(name):
    """The shared modules that the script imports: an edit to one reruns exactly its users."""
    return [project_file(str(path)) for path in find_code_closure(Path(script(name)))]


def settings(packages="", /, **sections):
    """The one param of a rule: its own settings and the locked versions of the packages that its result depends on."""
    return join_settings(LOCKED, packages, sections)


def config_subset(section, *names):
    return select_keys(CONFIGURATION[section], names)


def environment(group, name):
    """The conda environment of a rule that may be given a GPU."""
    set_resources = workflow.resource_settings.overwrite_resources
    return choose_environment_file(
        group, set_resources.get(name_rule(workflow, name), {})
    )


def on_gpus(wildcards, resources, threads):
    """A param that follows from resources, so it reruns nothing."""
    return reserve_gpus(script("with_gpus"), resources, threads)


def time_limit_flag(wildcards, resources):
    """The time that a scheduler gives this job; on the machine of the run itself there is no limit."""
    return ["--limit", resources.runtime] if workflow.remote_exec else []


def in_results(name):
    """A file or folder in the results folder, as a job sees it."""

    def path(wildcards, output):
        return f"{results_folder(wildcards, output)}/{name.format(**wildcards)}"

    return path


def temp_unless_kept(folder):
    """Weights of a run: with `keep: selected` they are removed once nothing needs them any more."""
    return temp(directory(folder)) if CONFIG.keep == "selected" else directory(folder)


# Input of who needs the temperature; free answers have no probabilities.
TEMPERATURE = (
    {"temperature": f"{R}/temperature.json"} if CONFIG.task == "classification" else {}
)


def temperature_flag(wildcards, input):
    return ["--temperature", input.temperature] if "temperature" in input.keys() else []


def trackers_flag(wildcards, output):
    """Who is told the numbers of a training; a param that follows from outputs, so it reruns nothing."""
    if not CONFIG.tracking:
        return []
    return ["--trackers", *CONFIG.tracking, "--run-name", f"{RESULTS}/{wildcards.run}"]


TRACKED = [f"{R}/tracked.json"] if CONFIG.tracking else []
final_outputs = expand_runs(lambda: [*STAGES.list_final_outputs(), *TRACKED])
