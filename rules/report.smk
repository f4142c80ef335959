"""From scores, speeds and the selected model to a package, plots, the report and the gate."""


rule summarize:
    """Collect every number that other tools read in one file."""
    input:
        **TEMPERATURE,
        audit=rules.audit_data.output.audit,
        split=rules.split_data.output.split,
        leakage=rules.check_leakage.output.leakage,
        tokenizer=rules.check_tokenizer.output.check,
        baselines=rules.score_baselines.output.scores,
        baseline_predictions=rules.score_baselines.output.predictions,
        base_validation=f"{R}/scores/base.validation.json",
        base_validation_predictions=f"{R}/scores/base.validation.predictions.jsonl",
        base_test=f"{R}/scores/base.test.json",
        base_test_predictions=f"{R}/scores/base.test.predictions.jsonl",
        base_manifest=rules.fetch_model.output.manifest,
        folder_manifests=expand_runs(lambda: list_manifests(STAGES.list_checkpoints())),
        training=expand_runs(STAGES.list_trainings),
        merges=expand_runs(STAGES.list_merge_choices),
        stages=expand_runs(STAGES.list_checkpoint_scores),
        candidates=expand_runs(STAGES.list_candidates),
        unscored=expand_runs(
            lambda: list_manifests(STAGES.list_builds(STAGES.unscored))
        ),
        selection=rules.select_model.output.selection,
        gate=rules.check_gate.output.gate,
        model_score=f"{R}/scores/model.test.json",
        model_predictions=f"{R}/scores/model.test.predictions.jsonl",
        model_manifest=rules.assemble_model.output.manifest,
        script=script("summarize"),
        modules=modules("summarize"),
    output:
        summary=report(
            f"{R}/summary.json", caption="captions/summary.rst", category="Numbers"
        ),
    log:
        f"{R}/logs/summarize/log.txt",
    benchmark:
        f"{R}/timings/summarize/time.tsv"
    localrule: STORED
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(
            "numpy scipy sacrebleu",
            task=CONFIG.task,
            seed=CONFIG.seed,
            evaluate=CONFIGURATION["evaluate"],
            runs=[
                {"name": name, "stages": run.stages, "trained": run.trained}
                for name, run in RUNS.items()
            ],
            built=list(VARIANTS),
            scored=STAGES.scored,
        ),
        base=in_results("base"),
        results=results_folder,
        temperature=temperature_flag,
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --audit {input.audit:q} --split {input.split:q}"
        " --leakage {input.leakage:q} --tokenizer {input.tokenizer:q}"
        " --baselines {input.baselines:q} --baseline-predictions {input.baseline_predictions:q}"
        " --base-validation {input.base_validation:q}"
        " --base-validation-predictions {input.base_validation_predictions:q} --base-test {input.base_test:q}"
        " --base-test-predictions {input.base_test_predictions:q} --base {params.base:q}"
        " --results {params.results:q} --selection {input.selection:q} {params.temperature:q}"
        " --gate {input.gate:q} --model-score {input.model_score:q} --model-predictions {input.model_predictions:q}"
        " --model-manifest {input.model_manifest:q} --output {output.summary:q} --log {log:q}"


rule package_model:
    """Package the model that the test rows scored, with a model card that states the verdict."""
    input:
        assembled=ancient(rules.assemble_model.output.model),
        assembled_manifest=rules.assemble_model.output.manifest,
        selection=rules.select_model.output.selection,
        base_manifest=rules.fetch_model.output.manifest,
        summary=rules.summarize.output.summary,
        script=script("package_model"),
        modules=modules("package_model"),
    output:
        model=report(
            directory(f"{R}/model"),
            patterns=["{card,README}.md"],
            caption="captions/model_card.rst",
            category="Report",
        ),
        manifest=f"{R}/model.manifest.json",
    log:
        f"{R}/logs/package_model/log.txt",
    benchmark:
        f"{R}/timings/package_model/time.tsv"
    conda:
        "../envs/report.yaml"
    shell:
        "exec python {input.script:q} --assembled {input.assembled:q} --selection {input.selection:q}"
        " --base-manifest {input.base_manifest:q} --summary {input.summary:q} --output {output.model:q} --log {log:q}"


rule write_plots:
    """Write what `dvc metrics` and `dvc plots` show: the headline numbers, and the points of the plots."""
    input:
        summary=rules.summarize.output.summary,
        training=expand_runs(STAGES.list_trainings),
        model_predictions=f"{R}/scores/model.test.predictions.jsonl",
        script=script("write_plots"),
        modules=modules("write_plots"),
    output:
        metrics=f"{R}/metrics.json",
        learning_curve=report(
            f"{R}/plots/learning_curve.csv",
            caption="captions/learning_curve.rst",
            category="Numbers",
        ),
        confusion=report(
            f"{R}/plots/confusion.csv",
            caption="captions/confusion.rst",
            category="Numbers",
        ),
        variants=report(
            f"{R}/plots/variants.csv",
            caption="captions/variants.rst",
            category="Numbers",
        ),
    log:
        f"{R}/logs/write_plots/log.txt",
    benchmark:
        f"{R}/timings/write_plots/time.tsv"
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        results=results_folder,
    shell:
        "exec python {input.script:q} --summary {input.summary:q} --results {params.results:q}"
        " --model-predictions {input.model_predictions:q} --metrics {output.metrics:q}"
        " --learning-curve {output.learning_curve:q}"
        " --confusion {output.confusion:q} --variants {output.variants:q} --log {log:q}"


rule write_report:
    """Write the report: one HTML file that needs no network."""
    input:
        summary=rules.summarize.output.summary,
        selection=rules.select_model.output.selection,
        audit=rules.audit_data.output.audit,
        split=rules.split_data.output.split,
        leakage=rules.check_leakage.output.leakage,
        baselines=rules.score_baselines.output.scores,
        training=expand_runs(STAGES.list_trainings),
        model_score=f"{R}/scores/model.test.json",
        model_predictions=f"{R}/scores/model.test.predictions.jsonl",
        rows=rules.render_corpus.output.test,
        template=rules.render_corpus.output.template,
        base_manifest=rules.fetch_model.output.manifest,
        assembled_manifest=rules.assemble_model.output.manifest,
        manifests=expand_runs(
            lambda: list_manifests(
                [
                    *STAGES.list_checkpoints(),
                    *STAGES.list_calibrations(),
                    *STAGES.list_builds(VARIANTS),
                ]
            )
        ),
        model_manifest=rules.package_model.output.manifest,
        page=project_file(str(HOME / "scripts/lib/report/page.html.j2")),
        script=script("write_report"),
        modules=modules("write_report"),
    output:
        report=report(
            f"{R}/report.html", caption="captions/report.rst", category="Report"
        ),
    log:
        f"{R}/logs/write_report/log.txt",
    benchmark:
        f"{R}/timings/write_report/time.tsv"
    localrule: STORED
    conda:
        "../envs/report.yaml"
    params:
        # Without `tracking`, so that whoever turns it on gets the same report.
        settings=lambda wildcards: dump_canonical_json(
            drop_nulls(omit_keys(CONFIGURATION, ["tracking"]))
        ),
        versions=settings("jinja2"),
        results=results_folder,
        calibrated=STAGES.calibrations,
        records=fetch_logs_command,
        timings=in_results("timings"),
        logs=in_results("logs"),
    shell:
        "{params.records:q} && exec python {input.script:q} --settings {params.settings:q} --summary {input.summary:q}"
        " --selection {input.selection:q} --audit {input.audit:q} --split {input.split:q}"
        " --leakage {input.leakage:q} --baselines {input.baselines:q}"
        " --results {params.results:q} --calibrated {params.calibrated:q} --model-score {input.model_score:q} --model-predictions {input.model_predictions:q}"
        " --rows {input.rows:q} --template {input.template:q}"
        " --timings {params.timings:q} --logs {params.logs:q}"
        " --output {output.report:q} --log {log:q}"


rule track_results:
    """Tell the trackers of the configuration what came out; never fails for one that cannot be reached."""
    input:
        summary=rules.summarize.output.summary,
        report=rules.write_report.output.report,
        model_manifest=rules.package_model.output.manifest,
        training=expand_runs(STAGES.list_trainings),
        manifests=expand_runs(
            lambda: list_manifests(
                [*STAGES.list_checkpoints(), *STAGES.list_builds(VARIANTS)]
            )
        ),
        script=script("track_results"),
        modules=modules("track_results"),
    output:
        tracked=f"{R}/tracked.json",
    log:
        f"{R}/logs/track_results/log.txt",
    benchmark:
        f"{R}/timings/track_results/time.tsv"
    priority: 1  # before the gate, which may end the run
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        settings=settings(trackers=CONFIG.tracking or [], name=RESULTS),
        results=results_folder,
    shell:
        "exec python {input.script:q} --settings {params.settings:q} --results {params.results:q}"
        " --summary {input.summary:q} --report {input.report:q} --model-manifest {input.model_manifest:q}"
        " --output {output.tracked:q} --log {log:q}"


rule enforce_gate:
    """Fail the run, as its very last step, when the gate did not pass."""
    input:
        gate=rules.check_gate.output.gate,
        report=rules.write_report.output.report,
        summary=rules.summarize.output.summary,
        model_manifest=rules.package_model.output.manifest,
        script=script("enforce_gate"),
        modules=modules("enforce_gate"),
    output:
        passed=f"{R}/gate.passed",
    log:
        f"{R}/logs/enforce_gate/log.txt",
    localrule: True
    conda:
        "../envs/report.yaml"
    shell:
        "exec python {input.script:q} --gate {input.gate:q} --report {input.report:q} --summary {input.summary:q}"
        " --output {output.passed:q} --log {log:q}"
