"""Jobs that share no files with this machine (profiles/azureml); where files are shared, these functions do nothing."""

from snakemake.io import sourcecache_entry

from lib.workflow.modules import keep_path

# The outputs of rules go through a storage.
STORED = workflow.storage_settings.default_storage_provider is not None


if not STORED:

    def local_file(path):
        """A file that stays on this machine while other files go through a storage."""
        return keep_path(path)

    def project_file(path):
        """A file of the project."""
        return keep_path(path)

    def ancient_in_remote_job(path):
        """A file whose time means nothing in a remote job."""
        return path

    def results_folder(wildcards, output):
        """The results folder as a job sees it."""
        return RESULTS

    def fetch_logs_command(wildcards, output):
        """The command that brings the logs and timings of all jobs, which are no inputs: they are here already."""
        return ["true"]

    def cache_flag(wildcards, output):
        """Where base models are kept that were imported before; jobs elsewhere have no such place."""
        return ["--cache", "work/base"]

    def mirror_flag(wildcards, output):
        """Where a training keeps a second copy of its progress."""
        return []

else:
    from lib.workflow.remote_storage import (
        build_fetch_command,
        find_results_copy,
        has_secret_address,
        prepare_storage,
        find_storage_address,
    )

    call_or_exit(prepare_storage, workflow)

    envvars:
        "SLMFLOW_CODE",

    if has_secret_address():

        envvars:
            "SLMFLOW_HF_TOKEN_SECRET",

    def local_file(path):
        return local(path)

    def project_file(path):
        """Sent to remote jobs together with the Snakefile."""
        return ancient_in_remote_job(sourcecache_entry(path, path))

    def ancient_in_remote_job(path):
        """Only the main process decides what to rerun. In a remote job the sources have just been unpacked, so by mtime
        everything would look outdated and be deleted from the storage.
        """
        return path if workflow.is_main_process else ancient(path)

    def results_folder(wildcards, output):
        """The job's copy, which holds what it needs from the storage."""
        return find_results_copy(str(output[0]), R)

    def fetch_results_command(*what, into=R):
        return build_fetch_command(
            script("fetch_results"), find_storage_address(workflow, R), into, what
        )

    def fetch_logs_command(wildcards, output):
        into = results_folder(wildcards, output)
        return fetch_results_command("--only", "logs", "timings", into=into)

    def cache_flag(wildcards, output):
        return []

    def mirror_flag(wildcards, output):
        """What a job writes beside its outputs goes with the job, so progress is copied to the storage."""
        if workflow.storage_settings.default_storage_provider != "azure":
            return []
        return ["--mirror", find_storage_address(workflow, "work/train")]
