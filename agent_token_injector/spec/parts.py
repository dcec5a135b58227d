"""What the parts of a spec are made of: the base model, frozen containers, and the forms of names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, StringConstraints, WithJsonSchema

from agent_token_injector import names

K = TypeVar("K")
V = TypeVar("V")

Access = Literal["read", "write", "admin"]
PermissionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_:.-]{0,79}$")]
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*$", max_length=40)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,500}$", strip_whitespace=True)]


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """A plain, mutable JSON copy of a frozen document."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


FrozenMap = Annotated[Mapping[K, V], AfterValidator(_frozen), PlainSerializer(thaw)]
FrozenJson = Annotated[
    Mapping[str, Any], AfterValidator(_frozen), PlainSerializer(thaw), WithJsonSchema({"type": "object"})
]


def _slug(text: str) -> str:
    return names.TaskSlug(text).value


def _glob(text: str) -> str:
    return str(names.SecretGlob.parse(text))


Slug = Annotated[
    str,
    AfterValidator(_slug),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": names.MAX_SLUG}),
]
VaultGlob = Annotated[
    str,
    AfterValidator(_glob),
    WithJsonSchema({"type": "string", "pattern": r"^(/[A-Za-z0-9_-]{1,100})*/[A-Z0-9_]{0,100}\*?$"}),
]
EnvName = Annotated[
    str,
    AfterValidator(names.check_env_name),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,99}$"}),
]


class Part(BaseModel):
    """A part of a spec: frozen, and closed to fields that it does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)
