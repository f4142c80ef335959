"""What Azure Machine Learning accepts as a job or an environment, after the models that its published API generates.

`azure-mgmt-machinelearningservices` is made from that API and is not what `azure-ai-ml` builds its requests with, so
the two are independent. It knows the versions up to 2023-04-01-preview, the client sends jobs as 2025-01-01-preview:
what the client really adds since then stands in NEWER.
"""

import re
from datetime import timedelta
from enum import EnumMeta
from functools import cache
from typing import Any

from azure.mgmt.machinelearningservices import models
from azure.mgmt.machinelearningservices._serialization import Deserializer

# What later versions of the API added and the client sends when it is asked for: model -> key -> its own keys -> values.
# A command without these sends nothing that the older models do not know.
NEWER = {"CommandJob": {"queueSettings": {"jobTier": ("Null", "Spot", "Basic", "Standard", "Premium")}}}
_SIMPLE = {"str": str, "bool": bool, "object": object, "float": (int, float)}


def violations(body: object) -> list[str]:
    """What is wrong with the body of PUT .../jobs/<name>, nothing if it is a command job as Azure takes it."""
    found = _check(body, "JobBase", "")
    job_type = body.get("properties", {}).get("jobType") if not found else "Command"
    return found if job_type == "Command" else [f"properties.jobType: a {job_type} job, and only commands run here"]


def environment_violations(body: object) -> list[str]:
    """What is wrong with the body of PUT .../environments/<name>/versions/<version>."""
    found = _check(body, "EnvironmentVersion", "")
    if not found and not ({"image", "build"} & set(body["properties"])):
        found.append("properties: neither image nor build")
    return found


def _check(value: object, kind: str, where: str) -> list[str]:
    """Compare a value with a type as the models spell them: str, [str], {str}, an enumeration or a model."""
    if kind.startswith("["):
        if not isinstance(value, list):
            return [f"{where}: no list: {value!r}"]
        return [one for i, item in enumerate(value) for one in _check(item, kind[1:-1], f"{where}[{i}]")]
    if kind.startswith("{"):
        if not isinstance(value, dict):
            return [f"{where}: no object: {value!r}"]
        return [one for key, item in value.items() for one in _check(item, kind[1:-1], f"{where}.{key}")]
    if isinstance(enumeration := getattr(models, kind, None), EnumMeta):
        allowed = [member.value for member in enumeration]
        return [] if value in allowed else [f"{where}: {value!r} is none of {', '.join(allowed)}"]
    if hasattr(models, kind):
        return _check_model(value, getattr(models, kind), where)
    return [] if _is(value, kind) else [f"{where}: not of type {kind}: {value!r}"]


def _is(value: object, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "duration":
        return isinstance(value, str) and _is_duration(value)
    return isinstance(value, _SIMPLE[kind])  # a KeyError is a type that this walker has to learn


def _is_duration(text: str) -> bool:
    try:
        return isinstance(Deserializer.deserialize_duration(text), timedelta)
    except Exception:  # the deserializer's own, and isodate's
        return False


def _check_model(value: object, model: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where or 'body'}: no object: {value!r}"]
    prefix = f"{where}." if where else ""
    for attribute, subtypes in getattr(model, "_subtype_map", {}).items():
        key = model._attribute_map[attribute]["key"]
        if key not in value:
            return [f"{prefix}{key}: missing"]
        if value[key] not in subtypes:
            return [f"{prefix}{key}: {value[key]!r} is none of {', '.join(subtypes)}"]
        model = getattr(models, subtypes[value[key]])
    found = []
    known = {description["key"]: attribute for attribute, description in model._attribute_map.items()}
    newer = NEWER.get(model.__name__, {})
    for attribute, rules in model._validation.items():
        key = model._attribute_map[attribute]["key"]
        if rules.get("required") and value.get(key) is None:
            found.append(f"{prefix}{key}: missing")
    for key, item in value.items():
        if key in newer:
            found += _check_newer(item, newer[key], prefix + key)
        elif key not in known:
            found.append(f"{prefix}{key}: unknown to {model.__name__}")
        elif item is not None:
            found += _check_attribute(item, model, known[key], prefix + key)
    return found


def _check_newer(value: object, allowed: dict[str, tuple[str, ...]], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: no object: {value!r}"]
    return [f"{where}.{key}: {item!r}" for key, item in value.items() if item not in allowed.get(key, ())]


def _check_attribute(value: object, model: Any, attribute: str, where: str) -> list[str]:
    rules = model._validation.get(attribute, {})
    if rules.get("readonly"):
        return [f"{where}: read-only"]
    kind = _enumerations(model).get(attribute) or model._attribute_map[attribute]["type"]
    found = _check(value, kind, where)
    if isinstance(value, str):
        if len(value) < rules.get("min_length", 0):
            found.append(f"{where}: shorter than {rules['min_length']}")
        elif "pattern" in rules and not re.search(rules["pattern"], value):
            found.append(f"{where}: {value!r} does not match {rules['pattern']}")
    return found


@cache
def _enumerations(model: Any) -> dict[str, str]:
    """Attributes with a closed set of values: only the documentation of a model says so, its map says str."""
    pairs = re.findall(r":vartype (\w+): str or\s+~azure\.mgmt\.machinelearningservices\.models\.(\w+)", model.__doc__)
    return dict(pairs)
