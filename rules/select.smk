"""From scores and speeds to a selected model, its files and its verdict."""


rule score_baselines:
    """Score the baselines: commonest label, label words, TF-IDF; for generation, the completion of the nearest prompt."""
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
        "../envs/report.yaml"
    resources:
        mem_mb=estimate_data_memory,
        runtime=estimate_data_minutes,
    params:
        settings=settings(
            "scikit-learn scipy numpy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --train {input.train:q}"
        " --validation {input.validation:q} --test {input.test:q} --template {input.template:q}"
        " --output {output.scores:q} --predictions {output.predictions:q} --log {log:q}"


rule select_model:
    """Select the variant that ships by the validation rows, within the constraints, with a reason for every rejection."""
    input:
        candidates=expand_runs(STAGES.list_candidates),
        script=script("select_model"),
        modules=modules("select_model"),
    output:
        selection=f"{R}/selection.json",
    log:
        f"{R}/logs/select_model/log.txt",
    benchmark:
        f"{R}/timings/select_model/time.tsv"
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            "numpy scipy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            selection=CONFIGURATION["selection"],
            evaluate=CONFIGURATION["evaluate"],
            runs=[
                {"name": name, "group": run.group, "seed": run.seed}
                for name, run in RUNS.items()
            ],
            scored=STAGES.scored,
            unscored={
                name: VARIANTS[name]["execution_provider"] for name in STAGES.unscored
            },
        ),
        results=results_folder,
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --results {params.results:q}"
        " --output {output.selection:q} --log {log:q}"


rule fit_temperature:
    """Fit the temperature of the selected model's probabilities and choose its threshold, both on validation rows."""
    input:
        selection=rules.select_model.output.selection,
        candidates=expand_runs(STAGES.list_candidates),
        script=script("fit_temperature"),
        modules=modules("fit_temperature"),
    output:
        temperature=f"{R}/temperature.json",
    log:
        f"{R}/logs/fit_temperature/log.txt",
    benchmark:
        f"{R}/timings/fit_temperature/time.tsv"
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            "scipy numpy",
            seed=CONFIG.seed,
            evaluate=config_subset("evaluate", "bootstrap_samples"),
            decision=CONFIGURATION["decision"],
        ),
        results=results_folder,
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --selection {input.selection:q}"
        " --results {params.results:q} --output {output.temperature:q} --log {log:q}"


rule assemble_model:
    """Assemble the selected model as the test rows will score it: ONNX files, tokenizer, template."""
    input:
        **TEMPERATURE,
        selection=rules.select_model.output.selection,
        template=rules.render_corpus.output.template,
        base=ancient(rules.fetch_model.output.model),
        base_manifest=rules.fetch_model.output.manifest,
        onnx=ancient(expand_runs(lambda: STAGES.list_builds(STAGES.scored))),
        onnx_manifests=expand_runs(
            lambda: list_manifests(STAGES.list_builds(STAGES.scored))
        ),
        script=script("assemble_model"),
        modules=modules("assemble_model"),
    output:
        model=directory(f"{R}/assembled"),
        manifest=f"{R}/assembled.manifest.json",
    log:
        f"{R}/logs/assemble_model/log.txt",
    benchmark:
        f"{R}/timings/assemble_model/time.tsv"
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            task=CONFIG.task,
            data=CONFIGURATION["data"],
            base_model=CONFIGURATION["base_model"],
            split=CONFIGURATION["split"],
            corpus=CONFIGURATION["corpus"],
            split_seed=CONFIG.seed,
            finetune=omit_keys(CONFIGURATION["finetune"], CONFIG.sweep.finetune),
            runs={
                name: {
                    "seed": run.seed,
                    "swept": select_keys(run.finetune, CONFIG.sweep.finetune),
                }
                for name, run in RUNS.items()
            },
        ),
        results=results_folder,
        records=fetch_logs_command,
        temperature=temperature_flag,
        timings=in_results("timings"),
    shell:
        "{params.records:q} && exec python {input.script:q} --settings {params.settings:q} --selection {input.selection:q}"
        " --results {params.results:q} --template {input.template:q} --base {input.base:q} {params.temperature:q}"
        " --timings {params.timings:q} --output {output.model:q} --log {log:q}"


rule keep_selected:
    """Copy adapter and merged model of the selected run to one place, where they stay with `keep: selected`."""
    input:
        selection=rules.select_model.output.selection,
        folders=ancient(
            expand_runs(lambda: STAGES.list_checkpoints("adapter", "merged"))
        ),
        folder_manifests=expand_runs(
            lambda: list_manifests(STAGES.list_checkpoints("adapter", "merged"))
        ),
        template=rules.render_corpus.output.template,
        script=script("keep_selected"),
        modules=modules("keep_selected"),
    output:
        selected=directory(f"{R}/selected"),
        manifest=f"{R}/selected.manifest.json",
    log:
        f"{R}/logs/keep_selected/log.txt",
    benchmark:
        f"{R}/timings/keep_selected/time.tsv"
    localrule: not STORED
    conda:
        "../envs/report.yaml"
    params:
        results=results_folder,
    shell:
        "exec python {input.script:q} --selection {input.selection:q} --results {params.results:q}"
        " --template {input.template:q} --output {output.selected:q} --log {log:q}"


rule check_gate:
    """Write the verdict on the test rows; succeeds whatever the verdict, so that the evidence stays."""
    input:
        score=f"{R}/scores/model.test.json",
        predictions=f"{R}/scores/model.test.predictions.jsonl",
        baseline_predictions=rules.score_baselines.output.predictions,
        base_predictions=f"{R}/scores/base.test.predictions.jsonl",
        script=script("check_gate"),
        modules=modules("check_gate"),
    output:
        gate=f"{R}/gate.json",
    log:
        f"{R}/logs/check_gate/log.txt",
    benchmark:
        f"{R}/timings/check_gate/time.tsv"
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            "numpy scipy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            gate=CONFIGURATION["gate"],
            evaluate=config_subset("evaluate", "bootstrap_samples"),
        ),
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --score {input.score:q}"
        " --predictions {input.predictions:q} --baseline-predictions {input.baseline_predictions:q}"
        " --base-predictions {input.base_predictions:q} --output {output.gate:q} --log {log:q}"
