"""Files of all runs, for the rules that read a whole sweep; the scripts find them by the same layout.

As functions, and not as lists in the rules: for such a list Snakemake takes a time that grows with the square of its
length.
"""


def every(paths):
    """An input: `paths` of all runs, when a job is planned."""
    return lambda wildcards: [str(path) for path in paths()]


def checkpoints(*stages):
    """Folders of the stages before the ONNX builds, or of some of these."""
    return [
        LAYOUT.folder(name, stage)
        for name, run in RUNS.items()
        for stage in run.stages
        if not stages or stage in stages
    ]


def builds(variants):
    return [
        LAYOUT.folder(name, f"onnx-{variant}") for name in RUNS for variant in variants
    ]


def manifests(folders):
    return [manifest_path(folder) for folder in folders]


def calibrations():
    return [LAYOUT.calibrated(name, variant) for name in RUNS for variant in ROUNDED]


def scores(name, stages):
    return [
        file(name, stage)
        for stage in stages
        for file in (LAYOUT.score, LAYOUT.predictions)
    ]


def candidates():
    """Scores, predictions, speeds and manifests of the variants that may be selected."""
    return [
        *(
            file
            for name in RUNS
            for file in scores(name, [f"onnx-{variant}" for variant in SCORED])
        ),
        *(LAYOUT.speed(name, variant) for name in RUNS for variant in SCORED),
        *manifests(builds(SCORED)),
    ]


def trainings():
    return [LAYOUT.training(name) for name in TRAINED]


def stage_scores():
    """Scores and predictions of the stages before the ONNX builds."""
    return [file for name, run in RUNS.items() for file in scores(name, run.stages)]


def shown(wildcards):
    """All that a finished run shows."""
    return [
        f"{R}/report.html",
        f"{R}/summary.json",
        f"{R}/model.manifest.json",
        f"{R}/selected.manifest.json",
        f"{R}/metrics.json",
        *every(lambda: manifests(builds(VARIANTS)))(wildcards),
    ]
