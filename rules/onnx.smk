"""From a merged model to ONNX builds, their scores, and their speed."""


rule calibrate_weights:
    """Round weights to 4 bits so that the outputs for training rows change least; no other rows are read."""
    input:
        merged=lambda wildcards: ancient(STAGES.find_merged(wildcards.run)),
        merged_manifest=lambda wildcards: f"{STAGES.find_merged(wildcards.run)}.manifest.json",
        rows=rules.render_corpus.output.train,
        leakage=rules.check_leakage.output.leakage,
        checked=ancient(f"{R}/checks/build/{{variant}}.done"),
        script=script("calibrate_weights"),
        modules=modules("calibrate_weights"),
    output:
        calibrated=temp_unless_kept(f"{R}/runs/{{run}}/calibrated/{{variant}}"),
        manifest=f"{R}/runs/{{run}}/calibrated/{{variant}}.manifest.json",
    log:
        f"{R}/logs/calibrate_weights/{{run}}.{{variant}}.txt",
    benchmark:
        f"{R}/timings/calibrate_weights/{{run}}.{{variant}}.tsv"
    wildcard_constraints:
        variant=match_names(STAGES.calibrated),
    priority: 3
    conda:
        environment("onnx", "calibrate_weights")
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(resources.estimate_calibrate_mb(PARAMETERS)),
        runtime=lambda wildcards, attempt: resources.estimate_calibrate_minutes(
            PARAMETERS, VARIANTS[wildcards.variant]["calibration"], attempt
        ),
    params:
        on_gpus=on_gpus,
        settings=settings(
            lambda wildcards: "torch transformers"
            + (
                " auto-round"
                if VARIANTS[wildcards.variant]["algo_config"] == "auto_round"
                else ""
            ),
            seed=CONFIG.seed,
            variant=lambda wildcards: select_calibration(VARIANTS[wildcards.variant]),
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --merged {input.merged:q} --rows {input.rows:q}"
        " --output {output.calibrated:q} --threads {threads:q} --log {log:q}"


rule build_onnx:
    """Build one ONNX variant of the merged model; a CPU build must load and answer prompts to be accepted."""
    input:
        unpack(STAGES.find_build_source),
        rows=rules.render_corpus.output.validation,
        checked=ancient(f"{R}/checks/build/{{variant}}.done"),
        script=script("build_onnx"),
        modules=modules("build_onnx"),
    output:
        onnx=temp_unless_kept(f"{R}/runs/{{run}}/onnx/{{variant}}"),
        manifest=f"{R}/runs/{{run}}/onnx/{{variant}}.manifest.json",
    log:
        f"{R}/logs/build_onnx/{{run}}.{{variant}}.txt",
    benchmark:
        f"{R}/timings/build_onnx/{{run}}.{{variant}}.tsv"
    priority: 4
    conda:
        environment("onnx", "build_onnx")
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(
            lambda wildcards, input: resources.estimate_build_mb(
                PARAMETERS, VARIANTS[wildcards.variant]["algo_config"]
            )
        ),
        runtime=lambda wildcards, attempt: resources.estimate_build_minutes(
            PARAMETERS, VARIANTS[wildcards.variant]["algo_config"], attempt
        ),
    params:
        on_gpus=on_gpus,
        settings=settings(
            "onnxruntime-genai onnxruntime onnx-ir torch transformers",
            variant=lambda wildcards: VARIANTS[wildcards.variant],
        ),
        calibrated=lambda wildcards, input: (
            ["--calibrated", input.calibrated] if "calibrated" in input.keys() else []
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --merged {input.merged:q} {params.calibrated:q}"
        " --rows {input.rows:q} --output {output.onnx:q} --threads {threads:q} --log {log:q}"


rule score_onnx:
    """Score an ONNX model on the rows of one split, and compare its tokenizer with the one of the training."""
    input:
        unpack(STAGES.find_onnx_model),
        rows=f"{R}/corpus/{{split}}.jsonl",
        template=rules.render_corpus.output.template,
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
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
        stage=match_names(
            ["model", *(f"{run}/onnx-{name}" for run in RUNS for name in VARIANTS)]
        ),
    priority: 5
    conda:
        environment("onnx", "score_onnx")
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(
            lambda wildcards, input: resources.estimate_score_onnx_mb(
                STAGES.estimate_onnx_mb(wildcards, PARAMETERS)
            )
        ),
        runtime=lambda wildcards, input, attempt: resources.estimate_score_onnx_minutes(
            PARAMETERS,
            STAGES.estimate_onnx_mb(wildcards, PARAMETERS),
            measure_mb([input.rows]),
            CONFIGURATION["evaluate"],
            attempt,
        ),
        gpu=STAGES.count_onnx_gpus,
    params:
        on_gpus=on_gpus,
        settings=settings(
            "onnxruntime-genai onnxruntime tokenizers sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --model {input.model:q} --tokenizer {input.tokenizer:q}"
        " --rows {input.rows:q} --template {input.template:q} --stage {wildcards.stage:q} --split {wildcards.split:q}"
        " --output {output.score:q} --predictions {output.predictions:q} --threads {threads:q} --log {log:q}"


rule benchmark_onnx:
    """Measure size, load time, time to first token, tokens per second and memory, in a process of its own."""
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
    threads: resources.HEAVY_THREADS
    resources:
        mem_mb=grow_memory(
            lambda wildcards, input: resources.estimate_benchmark_mb(
                STAGES.estimate_onnx_mb(wildcards, PARAMETERS)
            )
        ),
        runtime=lambda wildcards, attempt: resources.estimate_benchmark_minutes(
            STAGES.estimate_onnx_mb(wildcards, PARAMETERS),
            CONFIGURATION["benchmark"],
            attempt,
        ),
        gpu=STAGES.count_onnx_gpus,
    params:
        on_gpus=on_gpus,
        settings=settings(
            "onnxruntime-genai onnxruntime tokenizers",
            benchmark=CONFIGURATION["benchmark"],
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --model {input.model:q} --rows {input.rows:q}"
        " --output {output.speed:q} --threads {threads:q} --log {log:q}"
