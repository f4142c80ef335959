"""Raw JSON -> corpus -> adapter -> merged checkpoint -> int4 ONNX -> evaluation report.

The rules are in rules/, a file for each stage, in the order in which the data goes; each calls the script of
its name. `config.yaml` says what is made, a profile says where. Every rule gets exactly its own settings as one canonical
JSON text: Snakemake compares several scalar params as an unordered set and would miss swapped values.
"""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, os.path.join(workflow.current_basedir, "scripts"))

from lib.hardware import resources as needs
from lib.azure.machine_learning import job_address, job_type
from lib.core.cli import or_exit
from lib.provenance.code_closure import code_closure
from lib.config.loader import check_results_folder, check_yaml, load_config
from lib.core.files import canonical_json
from lib.workflow.expected_times import tell_expected_times
from lib.workflow.headline import headline
from lib.core.layout import Layout
from lib.provenance.manifests import manifest_path
from lib.workflow.remote_storage import known_after, known_before
from lib.workflow.helpers import (
    check_gpus,
    check_unquoted,
    environment_file,
    find_path,
    fitting,
    locked_versions,
    mend_ancient_inputs,
    one_of,
    project_folder,
    tell_unused_gpus,
    use_own_interpreter,
)

use_own_interpreter()
mend_ancient_inputs()
HOME = or_exit(project_folder, workflow.current_basedir)


if not workflow.overwrite_configfiles:
    or_exit(check_yaml, HOME / "config.yaml")

    configfile: f"{HOME}/config.yaml"


SOURCES = [Path(file) for file in workflow.configfiles]
for file in SOURCES:
    or_exit(check_yaml, file)
CONFIG = or_exit(load_config, config, SOURCES)


include: "rules/stored.smk"


TWEETS = here(str(HOME / "data/raw/tweets.json"))
DATA_FILES = [given(name, "data.files", {TWEETS}) for name in CONFIG.data.files or []]
MODEL_PATH = CONFIG.base_model.path and given(CONFIG.base_model.path, "base_model.path")
GIVEN = {
    kind: given(path, f"finetune.{kind}")
    for kind, path in [
        ("adapter", CONFIG.finetune.adapter),
        ("merged", CONFIG.finetune.merged),
    ]
    if path
}

LAYOUT = Layout(Path(CONFIG.results))
R = str(LAYOUT.results)  # without what may be written otherwise: ./results, results/
RUNS = CONFIG.runs
VARIANTS = {
    name: variant.model_dump(mode="json")
    for name, variant in CONFIG.every_variant.items()
}
SCORED = [name for name, variant in CONFIG.every_variant.items() if variant.scored]
UNSCORED = [name for name in VARIANTS if name not in SCORED]
SPLITS = ["train", "validation", "test"]
PARAMETERS = CONFIG.base_model.parameters
LOCKED = locked_versions(HOME / "requirements.lock")
CONFIGURATION = CONFIG.model_dump(mode="json")
# What makes commands long.
TEXTS = canonical_json([CONFIGURATION, *RUNS, *DATA_FILES])


wildcard_constraints:
    run=one_of(RUNS),
    variant=one_of(VARIANTS),
    split=one_of(SPLITS),


localrules:
    all,
    evidence,
    fetch_tweets,
    fetch_adapter,
    fetch_merged,
    select_model,
    check_gate,
    write_plots,
    enforce_gate,


# Nodes of a cluster may have no internet. Jobs elsewhere have it, but not the files of this machine.
if not STORED or CONFIG.data.files:

    localrules:
        fetch_data,


if not STORED or MODEL_PATH:

    localrules:
        fetch_model,


# Elsewhere a job takes minutes to start; but weights are copied where they are.
if STORED:

    localrules:
        summarise,
        write_report,

else:

    localrules:
        keep_selected,


# Before the DAG is believed; in a job the driver has done so already.
if workflow.is_main_process:
    or_exit(check_gpus, workflow.resource_settings.overwrite_resources)
    or_exit(check_unquoted, workflow, TEXTS)
    user_paths = {*DATA_FILES, MODEL_PATH, *GIVEN.values()} - {TWEETS, None}
    or_exit(check_results_folder, R, SOURCES, HOME, user_paths)
    or_exit(known_before, workflow, R, user_paths)


onstart:
    or_exit(check_unquoted, workflow, TEXTS)  # who runs the jobs is known only now
    tell_unused_gpus(workflow.resource_settings.overwrite_resources)
    tell_expected_times(workflow)


onsuccess:
    or_exit(known_after, workflow, R)
    if STORED:
        command = fetched("--shown")
        shell("{command:q}")
    if Path(f"{R}/gate.passed").exists():
        print(headline(Path(R)), flush=True)


onerror:
    or_exit(known_after, workflow, R)


include: "rules/common.smk"
include: "rules/sweep.smk"


rule all:
    """A packaged model, its report, and a gate that passed."""
    input:
        f"{R}/gate.passed",
        shown,


rule evidence:
    """All of it, whatever the gate says: for those who keep every experiment."""
    input:
        shown,


include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/onnx.smk"
include: "rules/report.smk"
