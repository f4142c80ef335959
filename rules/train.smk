"""From base model and corpus to a merged model, trained here or brought by the user, and the scores of PyTorch models."""

# Here and in onnx.smk, later steps have a higher priority, so each run of a sweep is finished before the next one is
# trained: its weights are dropped early (`keep: selected`), and a mistake shows after one training.


rule fetch_adapter:
    """Take an existing adapter instead of training one."""
    input:
        path=ADAPTER_PATH or [],
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("fetch_adapter"),
        modules=modules("fetch_adapter"),
    output:
        adapter=temp_unless_kept(f"{R}/runs/{{run}}/adapter"),
        manifest=f"{R}/runs/{{run}}/adapter.manifest.json",
    log:
        f"{R}/logs/fetch_adapter/{{run}}.txt",
    benchmark:
        f"{R}/timings/fetch_adapter/{{run}}.tsv"
    wildcard_constraints:
        run=match_names(
            name for name, run in RUNS.items() if run.adapted and not run.trained
        ),
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        settings=settings(
            "safetensors",
            adapter=CONFIG.finetune.adapter,
            quantization=lambda wildcards: choose_quantization(
                RUNS[wildcards.run].finetune
            ),
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --path {input.path:q} --base {input.base:q}"
        " --adapter {output.adapter:q} --log {log:q}"


rule train_adapter:
    """Train a low-rank adapter; validation rows choose the checkpoint, and a killed training resumes from work/."""
    input:
        train=rules.render_corpus.output.train,
        validation=rules.render_corpus.output.validation,
        template=rules.render_corpus.output.template,
        leakage=rules.check_leakage.output.leakage,
        # For the order only: their warnings come before the training, and a new result retrains nothing.
        checked=ancient(
            [
                f"{R}/corpus/checked.done",
                f"{R}/corpus/onnx_tokenizer.done",
                f"{R}/checks/model.done",
            ]
        ),
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("train_adapter"),
        modules=modules("train_adapter"),
    output:
        adapter=temp_unless_kept(f"{R}/runs/{{run}}/adapter"),
        manifest=f"{R}/runs/{{run}}/adapter.manifest.json",
        training=f"{R}/runs/{{run}}/training.json",
    log:
        f"{R}/logs/train_adapter/{{run}}.txt",
    benchmark:
        f"{R}/timings/train_adapter/{{run}}.tsv"
    wildcard_constraints:
        run=match_names(STAGES.trained),
    conda:
        environment("train", "train_adapter")
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(
            lambda wildcards, input: resources.estimate_train_mb(
                PARAMETERS,
                RUNS[wildcards.run].finetune,
                CONFIG.corpus.max_length,
                CONFIG.task,
            )
        ),
        runtime=lambda wildcards, input, attempt: resources.estimate_train_minutes(
            PARAMETERS,
            measure_mb([input.train]),
            measure_mb([input.validation]),
            RUNS[wildcards.run].finetune,
            CONFIGURATION["evaluate"] if CONFIG.task == "generation" else None,
            attempt,
        ),
    params:
        on_gpus=on_gpus,
        processes=count_processes,
        limit=time_limit_flag,
        mirror=mirror_flag,
        trackers=trackers_flag,
        settings=settings(
            lambda wildcards: "torch transformers peft accelerate tokenizers"
            + name_quantization_package(RUNS[wildcards.run].finetune)
            + (" sacrebleu" if CONFIG.task == "generation" else ""),
            task=CONFIG.task,
            seed=lambda wildcards: RUNS[wildcards.run].seed,
            finetune=lambda wildcards: RUNS[wildcards.run].finetune,
            evaluate=(
                config_subset("evaluate", "greedy_rows", "max_new_tokens")
                if CONFIG.task == "generation"
                else {}
            ),
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --train {input.train:q}"
        " --validation {input.validation:q} --template {input.template:q} --base {input.base:q} --work work/train"
        " --adapter {output.adapter:q} --training {output.training:q} --threads {threads:q}"
        " --processes {params.processes:q} {params.limit:q} {params.mirror:q} {params.trackers:q}"
        " --log {log:q}"


rule merge_adapter:
    """Add the adapter to the base weights, shard by shard, and compare the result with base plus adapter."""
    input:
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        adapter=lambda wildcards: ancient(
            f"{R}/runs/{wildcards.merge.partition('/')[0]}/adapter"
        ),
        adapter_manifest=lambda wildcards: (
            f"{R}/runs/{wildcards.merge.partition('/')[0]}/adapter.manifest.json"
        ),
        rows=rules.render_corpus.output.validation,
        script=script("merge_adapter"),
        modules=modules("merge_adapter"),
    output:
        merged=temp_unless_kept(f"{R}/runs/{{merge}}"),
        manifest=f"{R}/runs/{{merge}}.manifest.json",
    log:
        f"{R}/logs/merge_adapter/{{merge}}.txt",
    benchmark:
        f"{R}/timings/merge_adapter/{{merge}}.tsv"
    wildcard_constraints:
        merge=match_names(STAGES.merges),
    priority: 1
    conda:
        environment("train", "merge_adapter")
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(resources.estimate_merge_mb(PARAMETERS)),
        runtime=lambda wildcards, attempt: resources.estimate_merge_minutes(
            PARAMETERS, attempt
        ),
    params:
        on_gpus=on_gpus,
        settings=settings(
            lambda wildcards: "torch transformers peft safetensors"
            + name_quantization_package(
                RUNS[wildcards.merge.partition("/")[0]].finetune
            ),
            into=lambda wildcards: (
                "dequantized"
                if wildcards.merge.endswith("-dequantized")
                else "original"
            ),
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --base {input.base:q} --adapter {input.adapter:q}"
        " --rows {input.rows:q} --merged {output.merged:q} --threads {threads:q} --log {log:q}"


rule choose_merge:
    """Choose the better of two ways to merge the adapter of a 4-bit base, by the validation rows."""
    input:
        **{
            name: ancient(f"{R}/runs/{{run}}/merged-{name}")
            for name in ("original", "dequantized")
        },
        manifests=[
            f"{R}/runs/{{run}}/merged-{name}.manifest.json"
            for name in ("original", "dequantized")
        ],
        scores=[
            f"{R}/scores/{{run}}/merged-{name}.validation.{kind}"
            for name in ("original", "dequantized")
            for kind in ("json", "predictions.jsonl")
        ],
        script=script("choose_merge"),
        modules=modules("choose_merge"),
    output:
        merged=temp_unless_kept(f"{R}/runs/{{run}}/merged"),
        manifest=f"{R}/runs/{{run}}/merged.manifest.json",
        choice=f"{R}/runs/{{run}}/merge.json",
    log:
        f"{R}/logs/choose_merge/{{run}}.txt",
    benchmark:
        f"{R}/timings/choose_merge/{{run}}.tsv"
    wildcard_constraints:
        run=match_names(STAGES.two_merges),
    priority: 2
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            "numpy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            metric=CONFIG.selection.metric,
            evaluate=config_subset("evaluate", "bootstrap_samples"),
        ),
        scores=in_results("scores/{run}"),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --original {input.original:q}"
        " --dequantized {input.dequantized:q} --scores {params.scores:q} --merged {output.merged:q}"
        " --choice {output.choice:q} --log {log:q}"


rule fetch_merged:
    """Take an existing fine-tuned model instead of training and merging."""
    input:
        path=MERGED_PATH or [],
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("fetch_merged"),
        modules=modules("fetch_merged"),
    output:
        merged=temp_unless_kept(f"{R}/runs/{{run}}/merged"),
        manifest=f"{R}/runs/{{run}}/merged.manifest.json",
    log:
        f"{R}/logs/fetch_merged/{{run}}.txt",
    benchmark:
        f"{R}/timings/fetch_merged/{{run}}.tsv"
    wildcard_constraints:
        run=match_names(name for name, run in RUNS.items() if run.stages == ("merged",)),
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        settings=settings(
            "safetensors tokenizers transformers", merged=CONFIG.finetune.merged
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --path {input.path:q} --base {input.base:q}"
        " --merged {output.merged:q} --log {log:q}"


rule score_checkpoint:
    """Score a PyTorch model on the rows of one split."""
    input:
        unpack(STAGES.find_checkpoint),
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
        stage=match_names(["base", *STAGES.checkpoints]),
    priority: 5
    conda:
        environment("train", "score_checkpoint")
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(resources.estimate_score_mb(PARAMETERS)),
        runtime=estimate_score_minutes(PARAMETERS, CONFIGURATION["evaluate"]),
    params:
        on_gpus=on_gpus,
        settings=settings(
            STAGES.name_scoring_packages,
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
        adapter=lambda wildcards, input: (
            ["--adapter", input.adapter] if "adapter" in input.keys() else []
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --model {input.model:q} {params.adapter:q}"
        " --rows {input.rows:q} --template {input.template:q} --stage {wildcards.stage:q} --split {wildcards.split:q}"
        " --output {output.score:q} --predictions {output.predictions:q} --threads {threads:q} --log {log:q}"
