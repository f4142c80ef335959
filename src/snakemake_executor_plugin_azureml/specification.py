"""What is submitted: a plain description of a job, and how Azure's client wants it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from snakemake_interface_common.exceptions import WorkflowError

_INPUT_TYPES = ("uri_file", "uri_folder", "mlflow_model", "custom_model")
_INPUT_MODES = ("ro_mount", "download")


class JobInput(NamedTuple):
    """type and mode: by Azure's names, such as uri_folder and ro_mount. uri: begins with azureml:."""

    type: str
    mode: str
    uri: str


def parse_named_words(words: str | None, where: str) -> dict[str, str]:
    """Return NAME=VALUE words as a dictionary. Raises `WorkflowError`, which says `where`."""
    named: dict[str, str] = {}
    for word in (words or "").split():
        name, separator, value = word.partition("=")
        if not separator or not name.isidentifier() or not value:
            raise WorkflowError(f"{where}: {word} is not NAME=VALUE.")
        if name in named:
            raise WorkflowError(f"{where}: {name} is given twice.")
        named[name] = value
    return named


def parse_inputs(words: str | None, where: str) -> dict[str, JobInput]:
    """Return NAME=TYPE:MODE:URI words. Raises `WorkflowError`, which says `where`."""
    inputs = {}
    for name, value in parse_named_words(words, where).items():
        kind, _, rest = value.partition(":")
        mode, _, uri = rest.partition(":")
        address = normalize_address(uri)
        if kind not in _INPUT_TYPES or mode not in _INPUT_MODES or address is None:
            raise WorkflowError(
                f"{where}: {name}={value} is not NAME=TYPE:MODE:URI with a type of {', '.join(_INPUT_TYPES)}, a mode "
                f"of {', '.join(_INPUT_MODES)} and a URI that begins with azureml:."
            )
        inputs[name] = JobInput(kind, mode, address)
    return inputs


def parse_outputs(words: str | None, where: str) -> dict[str, str]:
    """Return NAME=URI words. Raises `WorkflowError`, which says `where`."""
    outputs = {}
    for name, uri in parse_named_words(words, where).items():
        address = normalize_address(uri)
        if address is None:
            raise WorkflowError(f"{where}: {name}={uri} does not begin with azureml:.")
        outputs[name] = address
    return outputs


def normalize_address(uri: str) -> str | None:
    """Return an address with its scheme as Azure's client wants it, in lower case; None for another scheme."""
    scheme, colon, rest = uri.partition(":")
    return f"azureml:{rest}" if colon and scheme.lower() == "azureml" else None


@dataclass(frozen=True)
class JobSpecification:
    """A command job. minutes: after which Azure ends it; None: its own limit."""

    name: str
    command: str
    environment_variables: Mapping[str, str]
    compute: str | None
    instance_type: str | None
    environment: str | None
    image: str | None
    conda_file: Path | None
    experiment: str
    identity: str
    shm_size: str | None
    minutes: int | None
    description: str
    tags: Mapping[str, str]
    inputs: Mapping[str, JobInput]
    outputs: Mapping[str, str]

    @classmethod
    def of(
        cls,
        *,
        name: str,
        command: str,
        environment_variables: Mapping[str, str],
        settings: Any,
        resources: Mapping[str, Any],
        description: str,
        tags: Mapping[str, str],
    ) -> "JobSpecification":
        """Build a specification from the settings of the run and the resources of a rule, which go first.

        Raises `WorkflowError` when it would have no place or no software to run in.
        """

        def own(key: str) -> Any:
            return resources.get(f"azureml_{key}") or getattr(settings, key)

        compute, instance_type = own("compute"), own("instance_type")
        if not compute and not instance_type:
            raise WorkflowError("no compute and no instance type; give --azureml-compute.")
        environment = resources.get("azureml_environment")
        image, conda_file = resources.get("azureml_image"), resources.get("azureml_conda_file")
        if not environment:
            image, conda_file = image or settings.image, conda_file or settings.conda_file
            environment = None if image else settings.environment
        if not environment and not image:
            raise WorkflowError(
                "no environment; give --azureml-environment, or --azureml-image with --azureml-conda-file."
            )
        if conda_file and not Path(conda_file).is_file():
            raise WorkflowError(f"azureml_conda_file: {conda_file} does not exist.")
        inputs = parse_inputs(_both(settings.inputs, resources.get("azureml_inputs")), "azureml_inputs")
        outputs = parse_outputs(_both(settings.outputs, resources.get("azureml_outputs")), "azureml_outputs")
        return cls(
            name=name,
            command=_with_paths(command, inputs, outputs),
            environment_variables=environment_variables,
            compute=compute,
            instance_type=instance_type,
            environment=environment,
            image=None if environment else image,
            conda_file=Path(conda_file) if conda_file and not environment else None,
            experiment=settings.experiment or "snakemake",
            identity=settings.identity or "managed",
            shm_size=settings.shm_size,
            minutes=int(resources["runtime"]) if resources.get("runtime") else None,
            description=description,
            tags={**parse_named_words(settings.tags, "--azureml-tags"), **tags},
            inputs=inputs,
            outputs=outputs,
        )

    def command_job(self) -> Any:
        """Return the same as `azure.ai.ml.entities.Command`."""
        from azure.ai.ml import Input, Output, command
        from azure.ai.ml.entities import (
            AmlTokenConfiguration,
            Environment,
            ManagedIdentityConfiguration,
            UserIdentityConfiguration,
        )

        kind, _, client_id = self.identity.partition(":")
        identity: Any = {
            "managed": ManagedIdentityConfiguration(client_id=client_id or None),
            "user": UserIdentityConfiguration(),
            "token": AmlTokenConfiguration(),
        }[kind]
        environment: Any = self.environment or Environment(
            image=self.image, conda_file=str(self.conda_file) if self.conda_file else None
        )
        return command(
            name=self.name,
            display_name=self.tags.get("snakemake_rule"),
            description=self.description,
            tags=dict(self.tags),
            command=self.command,
            environment=environment,
            environment_variables=dict(self.environment_variables),
            compute=self.compute,
            instance_type=self.instance_type,
            instance_count=1,
            shm_size=self.shm_size,
            timeout=60 * self.minutes if self.minutes else None,
            experiment_name=self.experiment,
            identity=identity,
            inputs={name: Input(type=one.type, mode=one.mode, path=one.uri) for name, one in self.inputs.items()},
            outputs={name: Output(type="uri_folder", mode="rw_mount", path=uri) for name, uri in self.outputs.items()},
        )


def _both(of_all: str | None, of_rule: str | None) -> str:
    return f"{of_all or ''} {of_rule or ''}"


def _with_paths(command: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
    """Return the command, told where its inputs and outputs are: Azure puts their paths into commands and nowhere
    else.
    """
    exports = [f'export AZUREML_INPUT_{name.upper()}="${{{{inputs.{name}}}}}"' for name in inputs]
    exports += [f'export AZUREML_OUTPUT_{name.upper()}="${{{{outputs.{name}}}}}"' for name in outputs]
    return " && ".join([*exports, command])
