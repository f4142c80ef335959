"""What is tried before the base model is fetched and trained: its kind, each variant, the corpus, other tokenizers."""

# The download and the training wait for `.done` files: their bytes never change, so a new result breaks no lineage, and
# taken as `ancient` it retrains nothing.


rule check_training:
    """Train a small random model of the base model's kind for two steps, merge it, and score it."""
    input:
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
        script=script("check_training"),
        modules=modules("check_training"),
    output:
        trial=directory(f"{R}/checks/trial"),
        manifest=f"{R}/checks/trial.manifest.json",
    log:
        f"{R}/logs/check_training/log.txt",
    benchmark:
        f"{R}/timings/check_training/time.tsv"
    localrule: not STORED or bool(MODEL_PATH)
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=grow_memory(resources.CHECK_MODEL_MB),
        runtime=lambda wildcards, attempt: resources.reserve_minutes(
            resources.CHECK_MODEL_SECONDS, attempt
        ),
    params:
        on_gpus=on_gpus,
        settings=settings(
            "torch transformers peft accelerate"
            + (
                " bitsandbytes"
                if any(choose_quantization(run.finetune) for run in RUNS.values())
                else ""
            ),
            model=CONFIG.base_model.label,
            parameters=PARAMETERS,
            methods=list_trial_methods(RUNS),
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --tokenizer {input.tokenizer:q}"
        " --trial {output.trial:q} --log {log:q}"


rule check_build:
    """Build the small model as one variant says, and compare it with transformers."""
    input:
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
        trial=ancient(rules.check_training.output.trial),
        trial_manifest=rules.check_training.output.manifest,
        script=script("check_build"),
        modules=modules("check_build"),
    output:
        verdict=f"{R}/checks/build/{{variant}}.json",
        done=touch(f"{R}/checks/build/{{variant}}.done"),
    log:
        f"{R}/logs/check_build/{{variant}}.txt",
    benchmark:
        f"{R}/timings/check_build/{{variant}}.tsv"
    localrule: not STORED or bool(MODEL_PATH)
    conda:
        "../envs/onnx.yaml"
    resources:
        mem_mb=grow_memory(resources.CHECK_MODEL_MB),
        runtime=lambda wildcards, attempt: resources.reserve_minutes(
            resources.CHECK_MODEL_SECONDS, attempt
        ),
    params:
        on_gpus=on_gpus,
        settings=settings(
            lambda wildcards: "onnxruntime-genai onnxruntime onnx-ir torch transformers"
            + (
                " auto-round"
                if VARIANTS[wildcards.variant]["algo_config"] == "auto_round"
                else ""
            ),
            model=CONFIG.base_model.label,
            seed=CONFIG.seed,
            variant=lambda wildcards: VARIANTS[wildcards.variant],
        ),
    shell:
        "exec {params.on_gpus:q} python {input.script:q} --settings {params.settings:q} --variant {wildcards.variant:q}"
        " --tokenizer {input.tokenizer:q} --trial {input.trial:q} --output {output.verdict:q} --log {log:q}"


rule check_model:
    """Collect the checks of the base model's kind and of each variant, for which download and training wait."""
    input:
        trial_manifest=rules.check_training.output.manifest,
        verdicts=[f"{R}/checks/build/{name}.json" for name in VARIANTS],
        script=script("check_model"),
        modules=modules("check_model"),
    output:
        verdict=f"{R}/checks/model.json",
        done=touch(f"{R}/checks/model.done"),
    log:
        f"{R}/logs/check_model/log.txt",
    benchmark:
        f"{R}/timings/check_model/time.tsv"
    localrule: not STORED or bool(MODEL_PATH)
    conda:
        "../envs/data.yaml"
    params:
        settings=settings(model=CONFIG.base_model.label),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --verdicts {input.verdicts:q}"
        " --output {output.verdict:q} --log {log:q}"


rule check_corpus:
    """Refuse lengths that the base model cannot read, and calibration rows that fill no sequence."""
    input:
        **{split: f"{R}/corpus/{split}.jsonl" for split in SPLITS},
        template=rules.render_corpus.output.template,
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
        script=script("check_corpus"),
        modules=modules("check_corpus"),
    output:
        done=touch(f"{R}/corpus/checked.done"),
    log:
        f"{R}/logs/check_corpus/log.txt",
    benchmark:
        f"{R}/timings/check_corpus/time.tsv"
    conda:
        "../envs/onnx.yaml"
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        settings=settings(
            "tokenizers",
            seed=CONFIG.seed,
            calibrations={
                name: variant["calibration"]
                for name, variant in VARIANTS.items()
                if variant["algo_config"] == "auto_round"  # joins rows to sequences
            },
            evaluate=config_subset("evaluate", "max_new_tokens"),
            benchmark=CONFIGURATION["benchmark"],
            decision=CONFIGURATION["decision"],
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --tokenizer {input.tokenizer:q}"
        " --train {input.train:q} --validation {input.validation:q} --test {input.test:q}"
        " --template {input.template:q} --log {log:q}"


rule check_tokenizer:
    """Warn, before the training, of texts that ONNX Runtime GenAI's own tokenizer splits differently; never fails."""
    input:
        **{split: f"{R}/corpus/{split}.jsonl" for split in SPLITS},
        template=rules.render_corpus.output.template,
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
        script=script("check_tokenizer"),
        modules=modules("check_tokenizer"),
    output:
        check=f"{R}/corpus/onnx_tokenizer.json",
        # The training waits for this file. Its bytes never change, so a new result breaks no adapter's lineage.
        done=touch(f"{R}/corpus/onnx_tokenizer.done"),
    log:
        f"{R}/logs/check_tokenizer/log.txt",
    benchmark:
        f"{R}/timings/check_tokenizer/time.tsv"
    conda:
        "../envs/onnx.yaml"
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        versions=settings("onnxruntime-genai tokenizers"),
    shell:
        "exec python {input.script:q} --tokenizer {input.tokenizer:q} --template {input.template:q}"
        " --train {input.train:q} --validation {input.validation:q} --test {input.test:q}"
        " --output {output.check:q} --log {log:q}"
