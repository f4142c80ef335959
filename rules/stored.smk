"""Files of this machine and files of a storage, where jobs share none with the run (profiles/azureml)."""

from snakemake.io import sourcecache_entry

from lib.workflow.remote_storage import names_secret, prepare_storage, storage_path

# Jobs that share no files with this machine: what the rules make goes through a storage (profiles/azureml).
STORED = workflow.storage_settings.default_storage_provider is not None
if STORED:
    or_exit(prepare_storage, workflow)

    envvars:
        "SLMFLOW_CODE",

    if names_secret():

        envvars:
            "SLMFLOW_HF_TOKEN_SECRET",


ELSEWHERE = STORED and not workflow.is_main_process


def here(path):
    """A file of this machine, whatever becomes of those that the rules make; who reads it runs here."""
    return local(path) if STORED else path


def source(path):
    """A file of the project, which jobs elsewhere are sent with the Snakefile."""
    return as_old(sourcecache_entry(path, path)) if STORED else path


def as_old(path):
    """The run decides what is made again. A job elsewhere has its sources since it began: by their times it would make
    again, and first delete from the storage, all that its inputs come from.
    """
    return ancient(path) if ELSEWHERE else path


def given(path, key, made=frozenset()):
    """A path of the configuration, which only this machine has."""
    return as_old(
        here(path if ELSEWHERE else or_exit(find_path, path, HOME, key, made))
    )
