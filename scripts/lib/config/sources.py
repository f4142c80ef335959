"""The sections of the configuration that say where rows and base model come from."""

from collections import Counter
from itertools import chain
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from lib.azure.machine_learning import StoredPath, parse_data, parse_model
from lib.config.variants import Count, Section
from lib.data.readers import FORMATS, is_readable

SHA256 = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, StringConstraints(pattern=SHA256)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Share = Annotated[float, Field(ge=0, le=1)]
LabelList = Annotated[list[str], Field(min_length=2), Tag("(list)")]
Spellings = Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)]
LabelSpellings = Annotated[dict[str, Spellings], Field(min_length=2), Tag("(mapping)")]
Labels = Annotated[
    LabelList | LabelSpellings, Discriminator(lambda value: "(mapping)" if isinstance(value, dict) else "(list)")
]
FileList = Annotated[list[str], Field(min_length=1), Tag("(list)")]
FilesBySplit = Annotated[
    dict[Literal["train", "validation", "test"], Annotated[list[str], Field(min_length=1)]],
    Field(min_length=1),
    Tag("(mapping)"),
]
Files = Annotated[
    FileList | FilesBySplit, Discriminator(lambda value: "(mapping)" if isinstance(value, dict) else "(list)")
]


class DataHub(Section):
    """A dataset on the Hugging Face hub."""

    id: str
    """Repository of the dataset, such as `owner/name`."""
    revision: Commit
    """Commit of the repository, 40 hex digits. Branches and tags are refused, since they can move."""
    split: str = "train"
    """Split of the dataset whose rows are used; slmflow makes its own splits from them."""
    config: str | None = None
    """Configuration (subset) of the dataset, where it has several."""


class ModelHub(Section):
    """A model on the Hugging Face hub. For a gated model, put your token into the environment variable HF_TOKEN."""

    id: str
    """Repository of the model, such as `owner/name`."""
    revision: Commit
    """Commit of the repository, 40 hex digits. Branches and tags are refused, since they can move."""


class Package(Section):
    """A file inside a Python package of the package index. No code of the package is run."""

    name: str
    """Name of the package."""
    version: str
    """Exact version of the package."""
    sha256: Sha256
    """sha256 of the package file (wheel or sdist), checked before anything in it is opened."""
    file: str
    """Path of the file inside the package; `a.tar.gz!b.txt` reaches into an archive."""


class Data(Section):
    """Where the rows come from, and which of them are used. Give exactly one of `files`, `hub`, `package`, `source`."""

    files: Files | None = None
    """Files with rows: JSON list, JSON Lines, CSV, TSV (each also as .gz), Excel or Parquet; folders and patterns such
    as rows/*.jsonl. As a list, or by split: {train: [a.jsonl], test: [b.jsonl]}. Relative paths start at the working
    folder, or else at the folder of the Snakefile."""
    hub: DataHub | None = None
    """A dataset on the Hugging Face hub."""
    package: Package | None = None
    """A file with rows inside a Python package."""
    source: str | None = None
    """A file of Azure Machine Learning: azureml://datastores/NAME/paths/FILE. Needs `sha256`."""
    sha256: Sha256 | None = None
    """sha256 of the file that `source` names, since the files of a datastore can change."""
    target: str
    """Column with the label (classification) or the completion (generation). Not with `conversation`."""
    conversation: str | None = None
    """Column that holds a conversation: a list of turns with `role` and `content`, or `from` and `value`. The last turn
    of the assistant is the completion, or the label; the tokenizer's chat template renders the turns. Not set: rows are
    columns."""
    answers: Literal["each"] | None = None
    """Which answers are trained on where the target of a generation row is a list of right ones. `each`: all of them,
    as rows of their own. Not set: the first. Scores count the answer that is nearest to any of them."""
    labels: Labels | None = None
    """All labels as a list, or as a mapping of each label to its other spellings: {calm: [Calm, CALM], angry: []}. Rows
    with another label are set aside. Not set: the labels found in the rows."""
    optional_columns: list[str] | None = None
    """Columns of the template that may be empty, null or missing. At least one of them must hold text. Not set:
    none."""
    max_rejected: Share | None = None
    """Largest share of the rows that may be set aside, not counting exact duplicates; beyond it the workflow stops. Not
    set: half."""
    unreadable: Literal["error", "reject"] = "error"
    """What happens to a row that cannot be read: `error` stops the workflow, `reject` sets the row aside."""
    special_tokens: Literal["reject", "strip"] = "reject"
    """What happens to a value that contains the text of a control token: `reject` sets its row aside, `strip` removes
    the text."""
    near_duplicates: Share = 0.8
    """Rows at least this similar (Jaccard similarity of character 5-grams) always land in the same split."""
    min_rows_per_class: Count = 20
    """Smallest number of usable rows in a class; with fewer the workflow stops."""

    @model_validator(mode="before")
    @classmethod
    def _target_of_a_conversation(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("conversation") is None:
            return values
        if values.get("target") not in (None, values["conversation"]):
            raise ValueError("target: the last turn of conversation: is the target; leave target: out")
        return {**values, "target": values["conversation"]}

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        _exactly_one(self, "files", "hub", "package", "source")
        if self.source:
            if not is_readable(PurePath(parse_data(self.source).path)):
                raise ValueError(f"source: {self.source} has a format that cannot be read, use {FORMATS}")
            if self.sha256 is None:
                raise ValueError("source: needs sha256: (of the file), since a datastore's files can change")
        elif self.sha256:
            raise ValueError("sha256: belongs to source:")
        return self

    @property
    def every_file(self) -> list[str]:
        """The names in `files`, as they stand there."""
        return list(chain.from_iterable(self.files.values() if isinstance(self.files, dict) else [self.files or []]))

    @property
    def splits(self) -> list[str]:
        """The split of each name in `files`, where they are named by split."""
        if not isinstance(self.files, dict):
            return []
        return [split for split, names in self.files.items() for _ in names]

    @model_validator(mode="after")
    def _files_once(self) -> "Data":
        name, count = Counter(self.every_file).most_common(1)[0] if self.files else ("", 0)
        if count > 1:
            raise ValueError(f"files: {name} is listed twice")
        return self

    @model_validator(mode="after")
    def _labels_once(self) -> "Data":
        others = self.labels.values() if isinstance(self.labels, dict) else ()
        spellings = [*(self.labels or ()), *chain.from_iterable(others)]
        text, count = Counter(spellings).most_common(1)[0] if spellings else ("", 0)
        if count > 1:
            raise ValueError(f"labels: {text!r} is listed twice")
        return self


class BaseModelSource(Section):
    """The model to fine-tune, as safetensors, or as GGUF, which is dequantized. No code of a model is run.

    Give exactly one of `path`, `hub`, `package`, `source`."""

    path: str | None = None
    """Folder with safetensors, or a .gguf file. A relative path starts at the working folder, or else at the folder of
    the Snakefile."""
    hub: ModelHub | None = None
    """A model on the Hugging Face hub."""
    package: Package | None = None
    """A .gguf file inside a Python package."""
    source: str | None = None
    """A model of Azure Machine Learning: azureml://registries/R/models/NAME/versions/N,
    azureml://models/NAME/versions/N of the workspace, or a folder azureml://datastores/NAME/paths/FOLDER, which needs
    `sha256`."""
    asset_type: Literal["mlflow_model", "custom_model"] | None = None
    """How the model of `source` is registered. Not set: mlflow_model."""
    sha256: Sha256 | None = None
    """sha256 of the files that `source` names: the `source_sha256` that a run writes into base.manifest.json."""
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    """Number of parameters of the model. Memory and time of the rules follow from it before the model is there; it is
    checked when the model comes."""

    @property
    def label(self) -> str:
        """Return the name that messages give the model."""
        named = self.hub.id if self.hub else self.package.name if self.package else self.path or self.source
        assert named is not None
        return named

    @model_validator(mode="after")
    def _one_source(self) -> "BaseModelSource":
        _exactly_one(self, "path", "hub", "package", "source")
        if not self.source:
            for name in ("sha256", "asset_type"):
                if getattr(self, name):
                    raise ValueError(f"{name}: belongs to source:")
        elif isinstance(parse_model(self.source), StoredPath) and self.sha256 is None:
            raise ValueError(
                "source: needs sha256:, since a datastore's files can change; write 64 zeros to be told it"
            )
        return self


def _exactly_one(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise ValueError(f"give exactly one of {', '.join(names)} (found {found})")
    if getattr(section, given[0]) == []:
        raise ValueError(f"{given[0]} is empty")
