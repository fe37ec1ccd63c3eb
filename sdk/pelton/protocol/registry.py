"""Specs and statuses to bytes and back: the contracts of the registry topics."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from pelton.core.retry import RetrySpec
from pelton.core.spec import (
    ContainerSpec,
    FunctionKind,
    FunctionSpec,
    ImageSpec,
    InstanceStatus,
    LagSpec,
    ParameterSpec,
    ProbeSpec,
    SecretRef,
)
from pelton.errors import RecordError
from pelton.protocol.avro import Subject, Values
from pelton.protocol.text import clean_text

ORDERINGS: Final = ("none", "key")
PROBES: Final = ("http", "tcp", "exec")
FUNCTION_SPEC: Final = Subject("function_spec")
CONTAINER_SPEC: Final = Subject("container_spec")
INSTANCE_STATUS: Final = Subject("instance_status")


def encode_function_spec(spec: FunctionSpec) -> bytes:
    """A function spec; what the registry holds is this, sealed.

    Raises:
        RecordError: a value does not fit its field.
    """
    return FUNCTION_SPEC.encode(
        {
            **_plain(spec),
            "kind": str(spec.kind),
            "parameters": [_plain(parameter) for parameter in spec.parameters],
            "description": clean_text(spec.description),
            "retry": spec.retry and _plain(spec.retry),
        }
    )


def decode_function_spec(data: bytes | None) -> FunctionSpec:
    """Reads a function spec.

    Raises:
        RecordError: it is none.
    """
    values = FUNCTION_SPEC.decode(data)
    _check_positive("function_spec", values)
    if values["ordering"] not in ORDERINGS:
        raise RecordError(f"a function_spec of an ordering unknown here: {values['ordering'][:80]!r}")
    try:
        kind = FunctionKind(values["kind"])
    except ValueError as error:
        raise RecordError(f"a function_spec of a kind unknown here: {error}") from error
    return FunctionSpec(
        **{
            **values,
            "kind": kind,
            "parameters": tuple(ParameterSpec(**parameter) for parameter in values["parameters"]),
            "tags": tuple(values["tags"]),
            "retry": _retry(values["retry"]),
        }
    )


def _retry(values: Values | None) -> RetrySpec | None:
    if values is None:
        return None
    _check_positive("retry", values)
    # Comparisons with NaN are false.
    if not (values["multiplier"] >= 1.0 and 0.0 <= values["jitter"] <= 1.0):
        raise RecordError("a function_spec whose retries have no sound multiplier or jitter")
    return RetrySpec(**{**values, "codes": tuple(values["codes"])})


def encode_container_spec(spec: ContainerSpec) -> bytes:
    """A container spec; what the registry holds is this, sealed.

    Raises:
        RecordError: a value does not fit its field.
    """
    return CONTAINER_SPEC.encode(
        {
            **_plain(spec),
            "image": {
                "python": spec.image.python,
                "steps": [{"kind": kind, "arguments": list(words)} for kind, words in spec.image.steps],
                "digest": spec.image.digest,
            },
            "env": [{"name": name, "value": value} for name, value in spec.env],
            "secrets": [_plain(secret) for secret in spec.secrets],
            "readiness": spec.readiness and _plain(spec.readiness),
            "liveness": spec.liveness and _plain(spec.liveness),
            "lag": spec.lag and _plain(spec.lag),
        }
    )


def decode_container_spec(data: bytes | None) -> ContainerSpec:
    """Reads a container spec.

    Raises:
        RecordError: it is none.
    """
    values = CONTAINER_SPEC.decode(data)
    _check_positive("container_spec", values)
    image = values["image"]
    return ContainerSpec(
        **{
            **values,
            "functions": tuple(values["functions"]),
            "image": ImageSpec(
                image["python"],
                tuple((step["kind"], tuple(step["arguments"])) for step in image["steps"]),
                image["digest"],
            ),
            "env": tuple((variable["name"], variable["value"]) for variable in values["env"]),
            "secrets": tuple(SecretRef(**secret) for secret in values["secrets"]),
            "entrypoint": tuple(values["entrypoint"]),
            "readiness": _probe(values["readiness"]),
            "liveness": _probe(values["liveness"]),
            "lag": values["lag"] and LagSpec(**values["lag"]),
        }
    )


def _probe(values: Values | None) -> ProbeSpec | None:
    if values is None:
        return None
    _check_positive("probe", values)
    if values["kind"] not in PROBES:
        raise RecordError(f"a container_spec with a probe unknown here: {values['kind'][:80]!r}")
    return ProbeSpec(**{**values, "command": tuple(values["command"])})


def encode_instance_status(status: InstanceStatus) -> bytes:
    """An instance status.

    Raises:
        RecordError: a value does not fit its field.
    """
    return INSTANCE_STATUS.encode(
        {**_plain(status), "host": clean_text(status.host), "reason": clean_text(status.reason)}
    )


def decode_instance_status(data: bytes | None) -> InstanceStatus:
    """Reads an instance status.

    Raises:
        RecordError: it is none.
    """
    values = INSTANCE_STATUS.decode(data)
    _check_positive("instance_status", values)
    return InstanceStatus(
        **{**values, "functions": tuple(values["functions"]), "executors": tuple(values["executors"])}
    )


def _plain(value: Any) -> Values:
    """The fields of a dataclass, tuples as lists."""
    plain = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: list(item) if isinstance(item, tuple) else item for name, item in plain.items()}


def _check_positive(name: str, values: Values) -> None:
    """Refuses negative numbers: nothing the registry counts can be one."""
    for field, value in values.items():
        if type(value) is int and value < 0:
            raise RecordError(f"a {name} with {field} {value}")
