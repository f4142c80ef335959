"""From base model and corpus to a merged model: trained here, or brought along; and what PyTorch stages score.

The later a step, the higher its priority, here and in onnx.smk: a run of a sweep is finished before the next one is
trained, so that its weights are dropped early (`keep: selected`) and a mistake shows after one training.
"""

TRAINED = [name for name, run in RUNS.items() if run.trained]
MERGES = [f"{name}/{merge}" for name, run in RUNS.items() for merge in run.merges]
TWO_MERGES = [name for name, run in RUNS.items() if len(run.merges) > 1]
STAGES = [f"{name}/{stage}" for name, run in RUNS.items() for stage in run.stages]


rule fetch_adapter:
    """An adapter that exists already, instead of training one."""
    input:
        path=GIVEN.get("adapter", []),
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("fetch_adapter"),
        modules=modules("fetch_adapter"),
    output:
        adapter=kept(f"{R}/runs/{{run}}/adapter"),
        manifest=f"{R}/runs/{{run}}/adapter.manifest.json",
    log:
        f"{R}/logs/fetch_adapter/{{run}}.txt",
    benchmark:
        f"{R}/timings/fetch_adapter/{{run}}.tsv"
    wildcard_constraints:
        run=one_of(
            name for name, run in RUNS.items() if run.adapted and not run.trained
        ),
    conda:
        "../envs/train.yaml"
    params:
        settings=settings(
            "safetensors",
            adapter=CONFIG.finetune.adapter,
            quantization=lambda wildcards: quantization(wildcards.run),
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --path {input.path} --base {input.base}"
        " --adapter {output.adapter} --log {log}"


rule train_adapter:
    """Low-rank adapter on the training rows; validation chooses the checkpoint. Resumes from work/."""
    input:
        train=rules.render_corpus.output.train,
        validation=rules.render_corpus.output.validation,
        template=rules.render_corpus.output.template,
        leakage=rules.check_leakage.output.leakage,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("train_adapter"),
        modules=modules("train_adapter"),
    output:
        adapter=kept(f"{R}/runs/{{run}}/adapter"),
        manifest=f"{R}/runs/{{run}}/adapter.manifest.json",
        training=f"{R}/runs/{{run}}/training.json",
    log:
        f"{R}/logs/train_adapter/{{run}}.txt",
    benchmark:
        f"{R}/timings/train_adapter/{{run}}.tsv"
    wildcard_constraints:
        run=one_of(TRAINED),
    conda:
        environment("train", "train_adapter")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(
            lambda wildcards, input: needs.train_mb(
                PARAMETERS, RUNS[wildcards.run].finetune, CONFIG.corpus.max_length
            )
        ),
        runtime=lambda wildcards, input, attempt: needs.train_minutes(
            PARAMETERS,
            size_mb([input.train]),
            RUNS[wildcards.run].finetune,
            attempt,
        ),
    params:
        on_gpus=on_gpus,
        processes=processes,
        limit=limit,
        mirror=mirror,
        settings=settings(
            lambda wildcards: "torch transformers peft accelerate tokenizers"
            + with_bitsandbytes(wildcards.run)
            + (" sacrebleu" if CONFIG.task == "generation" else ""),
            task=CONFIG.task,
            seed=lambda wildcards: RUNS[wildcards.run].seed,
            finetune=lambda wildcards: RUNS[wildcards.run].finetune,
            evaluate=(
                part("evaluate", "greedy_rows", "max_new_tokens")
                if CONFIG.task == "generation"
                else {}
            ),
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --train {input.train}"
        " --validation {input.validation} --template {input.template} --base {input.base} --work work/train"
        " --adapter {output.adapter} --training {output.training} --threads {threads}"
        " --processes {params.processes} {params.limit} {params.mirror} --log {log}"


rule merge_adapter:
    """Adapter added to the weights, shard by shard, checked against base and adapter."""
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
        merged=kept(f"{R}/runs/{{merge}}"),
        manifest=f"{R}/runs/{{merge}}.manifest.json",
    log:
        f"{R}/logs/merge_adapter/{{merge}}.txt",
    benchmark:
        f"{R}/timings/merge_adapter/{{merge}}.tsv"
    wildcard_constraints:
        merge=one_of(MERGES),
    priority: 1
    conda:
        environment("train", "merge_adapter")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(needs.merge_mb(PARAMETERS)),
        runtime=lambda wildcards, attempt: needs.merge_minutes(PARAMETERS, attempt),
    params:
        on_gpus=on_gpus,
        settings=settings(
            lambda wildcards: "torch transformers peft safetensors"
            + with_bitsandbytes(wildcards.merge.partition("/")[0]),
            into=lambda wildcards: (
                "dequantised"
                if wildcards.merge.endswith("-dequantised")
                else "original"
            ),
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --base {input.base} --adapter {input.adapter}"
        " --rows {input.rows} --merged {output.merged} --threads {threads} --log {log}"


rule choose_merge:
    """Of the two ways to merge an adapter of a 4-bit base, the one that validation rows prefer."""
    input:
        **{
            name: ancient(f"{R}/runs/{{run}}/merged-{name}")
            for name in ("original", "dequantised")
        },
        manifests=[
            f"{R}/runs/{{run}}/merged-{name}.manifest.json"
            for name in ("original", "dequantised")
        ],
        scores=[
            f"{R}/scores/{{run}}/merged-{name}.validation.{kind}"
            for name in ("original", "dequantised")
            for kind in ("json", "predictions.jsonl")
        ],
        script=script("choose_merge"),
        modules=modules("choose_merge"),
    output:
        merged=kept(f"{R}/runs/{{run}}/merged"),
        manifest=f"{R}/runs/{{run}}/merged.manifest.json",
        choice=f"{R}/runs/{{run}}/merge.json",
    log:
        f"{R}/logs/choose_merge/{{run}}.txt",
    benchmark:
        f"{R}/timings/choose_merge/{{run}}.tsv"
    wildcard_constraints:
        run=one_of(TWO_MERGES),
    priority: 2
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            "numpy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            metric=CONFIG.selection.metric,
            evaluate=part("evaluate", "bootstrap_samples"),
        ),
        scores=in_results("scores/{run}"),
    shell:
        "exec python {input.script} --settings {params.settings:q} --original {input.original}"
        " --dequantised {input.dequantised} --scores {params.scores} --merged {output.merged}"
        " --choice {output.choice} --log {log}"


rule fetch_merged:
    """A fine-tuned model that exists already, instead of training and merging."""
    input:
        path=GIVEN.get("merged", []),
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("fetch_merged"),
        modules=modules("fetch_merged"),
    output:
        merged=kept(f"{R}/runs/{{run}}/merged"),
        manifest=f"{R}/runs/{{run}}/merged.manifest.json",
    log:
        f"{R}/logs/fetch_merged/{{run}}.txt",
    benchmark:
        f"{R}/timings/fetch_merged/{{run}}.tsv"
    wildcard_constraints:
        run=one_of(name for name, run in RUNS.items() if run.stages == ("merged",)),
    conda:
        "../envs/train.yaml"
    params:
        settings=settings(
            "safetensors tokenizers transformers", merged=CONFIG.finetune.merged
        ),
    shell:
        "exec python {input.script} --settings {params.settings:q} --path {input.path} --base {input.base}"
        " --merged {output.merged} --log {log}"


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
        stage=one_of(["base", *STAGES]),
    priority: 5
    conda:
        environment("train", "score_checkpoint")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(needs.score_mb(PARAMETERS)),
        runtime=score_time,
    params:
        on_gpus=on_gpus,
        settings=settings(
            scoring_packages,
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
        adapter=lambda wildcards, input: (
            f"--adapter {input.adapter}" if "adapter" in input.keys() else ""
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --model {input.model} {params.adapter}"
        " --rows {input.rows} --template {input.template} --stage {wildcards.stage} --split {wildcards.split}"
        " --output {output.score} --predictions {output.predictions} --threads {threads} --log {log}"
