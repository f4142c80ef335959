"""Raw JSON -> corpus -> adapter -> merged checkpoint -> int4 ONNX -> evaluation report.

The rules are in rules/, one file per stage, in the order in which data flows. Each rule calls the script of its name.
config.yaml says what is made, a profile says where.
"""

import sys

from snakemake.utils import min_version

min_version("9.27")
sys.path.insert(0, f"{workflow.current_basedir}/scripts")


include: "rules/config.smk"
include: "rules/remote.smk"
include: "rules/common.smk"


rule all:
    """Make a packaged model and its report, and pass the gate."""
    input:
        f"{R}/gate.passed",
        final_outputs,


rule evidence:
    """Make everything that a run presents, whatever the gate says: for those who keep every experiment."""
    input:
        final_outputs,


include: "rules/data.smk"
include: "rules/checks.smk"
include: "rules/train.smk"
include: "rules/onnx.smk"
include: "rules/select.smk"
include: "rules/report.smk"
include: "rules/hooks.smk"
