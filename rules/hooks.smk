"""What happens before the DAG is built, when jobs start, and when they have ended."""

# Of a module, Snakemake runs none of the three hooks: the other workflow calls them in its own (docs/modules.md).

from lib.config.loader import check_results_folder
from lib.workflow.expected_times import tell_expected_times
from lib.workflow.headline import format_headline
from lib.workflow.helpers import check_gpus, check_unquoted, tell_unused_gpus
from lib.workflow.metadata_overlay import write_corrections
from lib.workflow.remote_storage import (
    sync_metadata_before_run,
    write_lineage_after_run,
)

# Everything that makes commands long.
TEXTS = dump_canonical_json([CONFIGURATION, *RUNS, *DATA_FILES])


# A remote job is part of a run that has checked all of this.
if workflow.is_main_process and IS_NEW:
    call_or_exit(check_gpus, workflow.resource_settings.overwrite_resources)
    call_or_exit(check_unquoted, workflow, TEXTS)
    user_paths = {*DATA_FILES, MODEL_PATH, ADAPTER_PATH, MERGED_PATH} - {TWEETS, None}
    call_or_exit(check_results_folder, RESULTS, CONFIG_FILES, HOME, user_paths, MODULE)
    call_or_exit(sync_metadata_before_run, workflow, RESULTS, user_paths)


onstart:
    call_or_exit(write_corrections)  # with --nolock nothing was written yet
    call_or_exit(check_unquoted, workflow, TEXTS)  # the executor is known only now
    tell_unused_gpus(workflow.resource_settings.overwrite_resources)
    tell_expected_times(workflow)


onsuccess:
    call_or_exit(write_lineage_after_run, workflow, RESULTS)
    if STORED:
        command = fetch_results_command("--shown")
        shell("{command:q}")
    if Path(f"{RESULTS}/gate.passed").exists():
        print(format_headline(Path(RESULTS)), flush=True)


onerror:
    call_or_exit(write_lineage_after_run, workflow, RESULTS)
