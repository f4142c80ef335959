"""What the rules share: scripts, settings, and which files a stage is made of."""

import shlex


def script(name):
    return source(str(HOME / "scripts" / f"{name}.py"))


def modules(name):
    """The shared modules that the script imports: an edit to one reruns exactly its users."""
    return [source(str(path)) for path in code_closure(Path(script(name)))]


def settings(packages="", /, **sections):
    """The one param of a rule: its own settings and the locked versions that its result depends on.

    Packages and sections may be functions of the wildcards. A function itself, since Snakemake would take
    braces in a text for wildcards.
    """

    def resolve(wildcards):
        def value(of):
            return of(wildcards) if callable(of) else of

        own = {name: value(section) for name, section in sections.items()}
        versions = {name: LOCKED[name] for name in value(packages).split()}
        return or_exit(fitting, canonical_json({**own, "versions": versions}))

    return resolve


def memory(mb):
    """`mem_mb` that grows with each attempt. mb: of the first; a number, or a function of wildcards and input."""

    def grown(wildcards, input, attempt):
        return needs.grown(mb(wildcards, input) if callable(mb) else mb, attempt)

    return grown


def size_mb(files):
    """MB of input files, here or in the storage."""
    return sum(
        file.storage_object.size() / 1e6 if file.is_storage else needs.size_mb(file)
        for file in files
    )


def data_memory(wildcards, input, attempt):
    return needs.grown(needs.data_mb(size_mb(input)), attempt)


def data_time(wildcards, input, attempt):
    return needs.data_minutes(size_mb(input), attempt)


def score_time(wildcards, input, attempt):
    return needs.score_minutes(
        PARAMETERS, size_mb([input.rows]), CONFIGURATION["evaluate"], attempt
    )


def on_gpus(wildcards, resources, threads):
    """Return the words before a command that reserve the GPUs of its job; a job without GPUs has them hidden.

    On several nodes it is started on each. As a param that follows from resources it reruns nothing.
    """
    launcher = []
    if resources.get("mpi"):
        launcher = [
            *shlex.split(str(resources.mpi)),
            *("-n", resources.tasks, "-N", resources.nodes),
            f"--cpus-per-task={threads}",
        ]
    gpus = needs.gpus(resources)
    own = (
        ["python", script("with_gpus"), gpus]
        if gpus
        else ["env", "CUDA_VISIBLE_DEVICES="]
    )
    return [*launcher, *own]


def processes(wildcards, resources):
    """Processes that train together, on each node."""
    return max(1, needs.gpus(resources))


def limit(wildcards, resources):
    """The time that a scheduler gives this job; on the machine of the run itself there is none."""
    return ["--limit", resources.runtime] if workflow.remote_exec else []


def results_folder(wildcards, output):
    """The results folder as a job sees it: of a storage it has a copy, with what the job needs."""
    if not STORED:
        return R
    path = str(output[0])
    return path[: path.rindex(f"/{R}/") + 1] + R


def in_results(name):
    """A file or folder in it, as a param of a job."""
    return (
        lambda wildcards, output: f"{results_folder(wildcards, output)}/{name.format(**wildcards)}"
    )


def fetched(*what, into=R):
    """Return the command that fetches some of the results from the storage; see scripts/fetch_results.py."""
    command = ["python", script("fetch_results")]
    place = ["--storage", storage_path(workflow, R), "--results", into]
    return [*command, *place, *what]


def records(wildcards, output):
    """Return the command that fetches logs and timings of all jobs, which are no inputs; here they lie already."""
    if not STORED:
        return ["true"]
    into = results_folder(wildcards, output)
    return fetched("--only", "logs", "timings", into=into)


def mirror(wildcards, output):
    """Where a training keeps its progress, when what a job writes beside its outputs goes with the job."""
    if workflow.storage_settings.default_storage_provider != "azure":
        return []
    return ["--mirror", storage_path(workflow, "work/train")]


def azure_input(name, how, source):
    """What a job of Azure Machine Learning is given, as its executor wants it; others know no such resource."""
    return f"{name}={how}:{job_address(source)}" if source else ""


# What the base model's job takes its input for.
ASSET_TYPE = CONFIG.base_model.source and job_type(
    CONFIG.base_model.source, CONFIG.base_model.asset_type or "mlflow_model"
)


def environment(group, name):
    """The conda environment of a rule that may be given a GPU, which Snakemake tells its jobs as well."""
    set_resources = workflow.resource_settings.overwrite_resources
    return environment_file(group, set_resources.get(name, {}))


def part(section, *names):
    return {name: CONFIGURATION[section][name] for name in names}


def source_of(section, *kinds):
    return {
        kind: CONFIGURATION[section][kind]
        for kind in kinds
        if CONFIGURATION[section][kind] is not None
    }


def kept(folder):
    """Weights of a run: gone with `keep: selected` once nothing needs them any more."""
    return temp(directory(folder)) if CONFIG.keep == "selected" else directory(folder)


def merged_folder(run):
    """The model that a run's ONNX builds are made of."""
    return f"{R}/base" if "merged" not in RUNS[run].stages else f"{R}/runs/{run}/merged"


def quantization(run):
    """How the base of a qlora run is kept in 4 bits; None for all others."""
    names = ("quant_type", "double_quant")
    finetune = RUNS[run].finetune
    return (
        {name: finetune[name] for name in names}
        if finetune["method"] == "qlora"
        else None
    )


def changed(run):
    """What the sweep has changed in the section `finetune` of a run."""
    return {
        key: value
        for key, value in run.finetune.items()
        if value != CONFIGURATION["finetune"][key]
    }


def with_bitsandbytes(run):
    return " bitsandbytes" if quantization(run) else ""


def checkpoint(wildcards):
    """Folders and manifests of a PyTorch stage: base, <run>/adapter or one of its merged models."""
    base = {"model": ancient(f"{R}/base"), "model_manifest": f"{R}/base.manifest.json"}
    run, _, stage = wildcards.stage.rpartition("/")
    folder = f"{R}/runs/{run}/{stage}"
    if not run:
        return base
    if stage == "adapter":
        return {
            **base,
            "adapter": ancient(folder),
            "adapter_manifest": f"{folder}.manifest.json",
        }
    return {"model": ancient(folder), "model_manifest": f"{folder}.manifest.json"}


def scoring_packages(wildcards):
    """An adapter of a 4-bit base is scored on that base."""
    run, _, stage = wildcards.stage.rpartition("/")
    return "torch transformers peft tokenizers sacrebleu" + (
        with_bitsandbytes(run) if stage == "adapter" else ""
    )


def calibration(variant):
    """All that the calibrated weights of a variant depend on."""
    names = ("block_size", "is_symmetric", "calibration")
    return {name: VARIANTS[variant][name] for name in names}


def build_source(wildcards):
    """Folders and manifests that a variant is built of: the merged model, and its calibrated weights if it has any."""
    run, variant = wildcards.run, wildcards.variant
    found = {
        "merged": ancient(merged_folder(run)),
        "merged_manifest": f"{merged_folder(run)}.manifest.json",
    }
    if variant in CALIBRATED:
        folder = f"{R}/runs/{run}/calibrated/{CALIBRATED[variant]}"
        found |= {
            "calibrated": ancient(folder),
            "calibrated_manifest": f"{folder}.manifest.json",
        }
    return found


# Variants that only a GPU runs, and that are run here.
ON_GPU = {
    name
    for name in SCORED
    if VARIANTS[name]["execution_provider"] in ("cuda", "trt-rtx")
}


def onnx_gpu(wildcards):
    """GPUs that an ONNX stage needs; any of the variants may be the packaged one."""
    if wildcards.get("stage") == "model":
        return 1 if ON_GPU else 0
    name = wildcards.get("variant") or wildcards.stage.rpartition("/")[2].removeprefix(
        "onnx-"
    )
    return 1 if name in ON_GPU else 0


def onnx_model(wildcards):
    """Folder and manifest of an ONNX stage: <run>/onnx-<variant>, or the packaged model."""
    run, _, stage = wildcards.stage.rpartition("/")
    folder = (
        f"{R}/assembled"
        if stage == "model"
        else f"{R}/runs/{run}/onnx/{stage.removeprefix('onnx-')}"
    )
    return {"model": ancient(folder), "model_manifest": f"{folder}.manifest.json"}
