"""What the executor for Azure Machine Learning gives a job as input; other executors do not know this resource."""


def describe_data_input(source: str | None) -> str:
    """Return the resource `azureml_inputs` of the rule that reads the rows; empty unless they come from Azure."""
    return _describe("data", "uri_file", "ro_mount", source) if source else ""


def describe_model_input(source: str | None, asset_type: str | None, mode: str) -> str:
    """Return the resource `azureml_inputs` of a rule that reads the base model; empty unless it comes from Azure.

    asset_type: what a version of the model is registered as. mode: `download`, or `ro_mount` to read a part of it.
    """
    if not source:
        return ""
    from lib.azure.machine_learning import choose_job_type

    return _describe("model", choose_job_type(source, asset_type or "mlflow_model"), mode, source)


def _describe(name: str, kind: str, mode: str, source: str) -> str:
    from lib.azure.machine_learning import build_job_address

    return f"{name}={kind}:{mode}:{build_job_address(source)}"
