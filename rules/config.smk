"""The configuration: read, checked, and expanded into runs and variants."""

import os
from pathlib import Path

from lib.config.loader import check_yaml, load_config
from lib.core.cli import call_or_exit
from lib.core.layout import SPLITS
from lib.workflow.helpers import (
    read_locked_versions,
    mend_ancient_inputs,
    match_names,
    find_project_folder,
    use_own_interpreter,
)
from lib.workflow.modules import claim_results, find_module, find_results
from lib.workflow.stages import Stages

use_own_interpreter()
mend_ancient_inputs()
HOME = call_or_exit(find_project_folder, os.path.dirname(workflow.current_basedir))
# None unless another workflow has slmflow as a module; Snakemake then takes that workflow's configuration.
MODULE = call_or_exit(find_module, workflow, config)


if MODULE is None and not workflow.overwrite_configfiles:
    call_or_exit(check_yaml, HOME / "config.yaml")

    configfile: f"{HOME}/config.yaml"


CONFIG_FILES = [Path(file) for file in workflow.configfiles]
for file in CONFIG_FILES if MODULE is None else []:
    call_or_exit(check_yaml, file)
CONFIG = call_or_exit(load_config, config, CONFIG_FILES, MODULE)
CONFIGURATION = CONFIG.model_dump(mode="json")

R = str(Path(CONFIG.results))  # one spelling: ./results and results/ are both results
# The same folder where Snakemake does not put the prefix of a module before it.
RESULTS = call_or_exit(find_results, workflow, MODULE, R)
IS_NEW = call_or_exit(claim_results, workflow, MODULE, RESULTS)
RUNS = CONFIG.runs
VARIANTS = {
    name: variant.model_dump(mode="json")
    for name, variant in CONFIG.every_variant.items()
}
PARAMETERS = CONFIG.base_model.parameters
LOCKED = read_locked_versions(HOME / "requirements.lock")
STAGES = Stages(
    R,
    RUNS,
    VARIANTS,
    scored=[name for name, variant in CONFIG.every_variant.items() if variant.scored],
)


wildcard_constraints:
    run=match_names(RUNS),
    variant=match_names(VARIANTS),
    split=match_names(SPLITS),
