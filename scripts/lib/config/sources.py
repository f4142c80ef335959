"""The sections of the configuration that say where rows and base model come from."""

from collections import Counter
from itertools import chain
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from lib.azure.machine_learning import StoredPath, parse_data, parse_model
from lib.config.variants import Count, Section
from lib.data.readers import FORMATS, SUFFIXES

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


class DataHub(Section):
    """A dataset on the Hugging Face hub."""

    id: str
    revision: Commit
    """The commit, 40 hex digits: a branch name would change under you."""
    split: str = "train"
    config: str | None = None


class ModelHub(Section):
    """A model on the Hugging Face hub; a gated one reads its token from the variable HF_TOKEN."""

    id: str
    revision: Commit
    """The commit, 40 hex digits: a branch name would change under you."""


class Package(Section):
    """A file inside a Python package."""

    name: str
    version: str
    sha256: Sha256
    """Of the package file (wheel or sdist), checked before anything in it is opened."""
    file: str
    """Path inside the package; `a.tar.gz!b.txt` reaches into an archive."""


class Data(Section):
    """Where the rows come from and what is a usable row."""

    files: list[str] | None = None
    """JSON list, JSON Lines, CSV or Parquet files; relative to the working folder, else to the Snakefile."""
    hub: DataHub | None = None
    package: Package | None = None
    source: str | None = None
    """A file of Azure Machine Learning: azureml://datastores/NAME/paths/FILE."""
    sha256: Sha256 | None = None
    """Of the file that `source` names: a datastore's files can change under you."""
    target: str
    """Column with the label (classification) or the answer (generation)."""
    labels: Labels | None = None
    """All labels, or a mapping of each to its other spellings: {calm: [Calm, CALM], angry: []}. Rows with another
    label are set aside. Left out: the labels that the data holds."""
    optional_columns: list[str] | None = None
    """Columns of the template that may be empty, null or missing; left out: none. One of them must hold something."""
    max_rejected: Share | None = None
    """Share of the rows that may be set aside, exact duplicates not counted; more stop the workflow. Left out: half."""
    unreadable: Literal["error", "reject"] = "error"
    """A row that cannot be read stops the workflow, or is set aside."""
    special_tokens: Literal["reject", "strip"] = "reject"
    """A value that contains the text of a control token is set aside, or loses that text."""
    near_duplicates: Share = 0.8
    """Rows at least this similar (Jaccard of character 5-grams) never land in different splits."""
    min_rows_per_class: Count = 20
    """Fewer usable rows in a class stop the workflow."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        _exactly_one(self, "files", "hub", "package", "source")
        if self.source:
            if PurePath(parse_data(self.source).path).suffix.lower() not in SUFFIXES:
                raise ValueError(f"source: {self.source} is not a file that is read here, use {FORMATS}")
            if self.sha256 is None:
                raise ValueError("source: needs sha256: (of the file), since a datastore's files can change")
        elif self.sha256:
            raise ValueError("sha256: belongs to source:")
        return self

    @model_validator(mode="after")
    def _labels_once(self) -> "Data":
        others = self.labels.values() if isinstance(self.labels, dict) else ()
        spellings = [*(self.labels or ()), *chain.from_iterable(others)]
        text, count = Counter(spellings).most_common(1)[0] if spellings else ("", 0)
        if count > 1:
            raise ValueError(f"labels: {text!r} stands there twice")
        return self


class BaseModelSource(Section):
    """The model to fine-tune: safetensors, or GGUF that is dequantised. No code of a model is run."""

    path: str | None = None
    """Folder (or .gguf file); relative to the working folder, else to the Snakefile."""
    hub: ModelHub | None = None
    package: Package | None = None
    source: str | None = None
    """A model of Azure Machine Learning: azureml://registries/R/models/NAME/versions/N, azureml://models/NAME/versions/N
    of the workspace, or a folder azureml://datastores/NAME/paths/FOLDER."""
    asset_type: Literal["mlflow_model", "custom_model"] | None = None
    """What the model of `source` is registered as; left out: mlflow_model."""
    sha256: Sha256 | None = None
    """Of the files that `source` names: `source_sha256` in base.manifest.json, for a folder needed."""
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    """Number of parameters: memory and time of the rules follow from it before the model is there."""

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
