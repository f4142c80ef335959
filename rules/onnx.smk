"""From a merged model to ONNX builds, their scores and their speed."""

# Each calibrated variant, and the first one with the same settings, whose calibrated weights it shares.
CALIBRATED = {}
for name in VARIANTS:
    if VARIANTS[name]["algo_config"] == "auto_round":
        CALIBRATED[name] = next(
            (other for other in CALIBRATED if calibration(other) == calibration(name)),
            name,
        )
ROUNDED = sorted(set(CALIBRATED.values()))


rule check_tokenizer:
    """What ONNX Runtime GenAI's own tokenizer reads otherwise: told before the training, no error."""
    input:
        **{split: f"{R}/corpus/{split}.jsonl" for split in SPLITS},
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        script=script("check_tokenizer"),
        modules=modules("check_tokenizer"),
    output:
        check=f"{R}/corpus/onnx_tokenizer.json",
    log:
        f"{R}/logs/check_tokenizer/log.txt",
    benchmark:
        f"{R}/timings/check_tokenizer/time.tsv"
    # First by priority, and no ancient() input of the training: when a job reruns, Snakemake 9.27 does not look whether
    # what depends on it has reasons of its own, so behind ancient() an outdated ONNX build would stay as it is.
    priority: 6
    conda:
        "../envs/onnx.yaml"
    resources:
        mem_mb=data_memory,
        runtime=data_time,
    params:
        versions=settings("onnxruntime-genai tokenizers"),
    shell:
        "exec python {input.script} --base {input.base}"
        " --train {input.train} --validation {input.validation} --test {input.test}"
        " --output {output.check} --log {log}"


rule calibrate_weights:
    """Weights rounded to 4 bits so that the answers to training rows stay; no other rows are seen."""
    input:
        merged=lambda wildcards: ancient(merged_folder(wildcards.run)),
        merged_manifest=lambda wildcards: f"{merged_folder(wildcards.run)}.manifest.json",
        rows=rules.render_corpus.output.train,
        leakage=rules.check_leakage.output.leakage,
        script=script("calibrate_weights"),
        modules=modules("calibrate_weights"),
    output:
        calibrated=kept(f"{R}/runs/{{run}}/calibrated/{{variant}}"),
        manifest=f"{R}/runs/{{run}}/calibrated/{{variant}}.manifest.json",
    log:
        f"{R}/logs/calibrate_weights/{{run}}.{{variant}}.txt",
    benchmark:
        f"{R}/timings/calibrate_weights/{{run}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=one_of(CALIBRATED),
    priority: 3
    conda:
        environment("onnx", "calibrate_weights")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(needs.calibrate_mb(PARAMETERS)),
        runtime=lambda wildcards, attempt: needs.calibrate_minutes(
            PARAMETERS, VARIANTS[wildcards.variant]["calibration"], attempt
        ),
    params:
        on_gpus=on_gpus,
        settings=settings(
            "auto-round torch transformers",
            seed=CONFIG.seed,
            variant=lambda wildcards: calibration(wildcards.variant),
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --merged {input.merged} --rows {input.rows}"
        " --output {output.calibrated} --threads {threads} --log {log}"


rule build_onnx:
    """One ONNX build of the merged model, loaded and run before it counts."""
    input:
        unpack(build_source),
        rows=rules.render_corpus.output.validation,
        script=script("build_onnx"),
        modules=modules("build_onnx"),
    output:
        onnx=kept(f"{R}/runs/{{run}}/onnx/{{variant}}"),
        manifest=f"{R}/runs/{{run}}/onnx/{{variant}}.manifest.json",
    log:
        f"{R}/logs/build_onnx/{{run}}.{{variant}}.txt",
    benchmark:
        f"{R}/timings/build_onnx/{{run}}.{{variant}}.tsv"
    priority: 4
    conda:
        environment("onnx", "build_onnx")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(needs.build_mb(PARAMETERS)),
        runtime=lambda wildcards, attempt: needs.build_minutes(PARAMETERS, attempt),
    params:
        on_gpus=on_gpus,
        settings=settings(
            "onnxruntime-genai onnxruntime onnx-ir torch transformers",
            variant=lambda wildcards: VARIANTS[wildcards.variant],
        ),
        calibrated=lambda wildcards, input: (
            f"--calibrated {input.calibrated}" if "calibrated" in input.keys() else ""
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --merged {input.merged} {params.calibrated}"
        " --rows {input.rows} --output {output.onnx} --threads {threads} --log {log}"


rule score_onnx:
    """An ONNX stage on the rows of one split, its tokenizer compared with that of the training."""
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
        stage=one_of(
            ["model", *(f"{run}/onnx-{name}" for run in RUNS for name in VARIANTS)]
        ),
    priority: 5
    conda:
        environment("onnx", "score_onnx")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(needs.score_mb(PARAMETERS)),
        runtime=score_time,
        gpu=onnx_gpu,
    params:
        on_gpus=on_gpus,
        settings=settings(
            "onnxruntime-genai onnxruntime tokenizers sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --model {input.model} --tokenizer {input.base}"
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
    priority: 5
    conda:
        environment("onnx", "benchmark_onnx")
    threads: needs.HEAVY_THREADS
    resources:
        mem_mb=memory(needs.score_mb(PARAMETERS)),
        runtime=lambda wildcards, attempt: needs.benchmark_minutes(
            PARAMETERS, CONFIGURATION["benchmark"], attempt
        ),
        gpu=onnx_gpu,
    params:
        on_gpus=on_gpus,
        settings=settings(
            "onnxruntime-genai onnxruntime tokenizers",
            benchmark=CONFIGURATION["benchmark"],
        ),
    shell:
        "exec {params.on_gpus} python {input.script} --settings {params.settings:q} --model {input.model} --rows {input.rows}"
        " --output {output.speed} --threads {threads} --log {log}"
