"""Settings declared once: the type, default, bounds, choices and sentence of a field make its option on the command
line, its check and its row in the docs.

    @dataclass(frozen=True, config=STRICT)
    class Warmth(Declared):
        steps: int = setting(100, "Optimizer steps.", gt=0)

A wrong value is a `ConfigError` of one sentence: `--steps must be greater than 0, not 0`. `dataclass` is pydantic's.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from storage.errors import ConfigError

# defer_build: checks are made when first used, which --help never does
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)

UPPER = ("below", "at most")


def setting(
    default: Any,
    sentence: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    why: str = "",
    flag: str = "",
) -> Any:
    """A field. `...` as default: it must be given. why: follows a bound other than 0 in the sentence of its error.
    flag: the option, where it is not the field's name."""
    known: dict[str, Any] = {"why": why, "flag": flag}
    return Field(default, description=sentence, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra=known)


def same(group: type, name: str) -> Any:
    """The declaration of a setting of another group, for one that means the same."""
    return copy(group.__pydantic_fields__[name])  # type: ignore[attr-defined]


@plain_dataclass(frozen=True)
class Setting:
    """What is declared of one field."""

    name: str
    field: FieldInfo

    @property
    def kind(self) -> Any:
        """The type without None."""
        kind = self.field.annotation
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(k for k in get_args(kind) if k is not types.NoneType)
        return kind

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def repeats(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.kind) is tuple

    @property
    def type(self) -> type:
        """Of one value: bool, int, float or str."""
        return get_args(self.kind)[0] if self.repeats else str if self.choices else self.kind

    @property
    def required(self) -> bool:
        return self.field.default is PydanticUndefined

    @property
    def default(self) -> Any:
        return None if self.required else self.field.default

    @property
    def sentence(self) -> str:
        return self.field.description or ""

    @property
    def flag(self) -> str:
        """`--top-k`, `--vllm/--no-vllm`."""
        flag = self._extra["flag"] or "--" + self.name.replace("_", "-")
        return f"{flag}/--no-{flag[2:]}" if self.type is bool else flag

    @property
    def option(self) -> str:
        """The option as errors name it."""
        return self.flag.split()[0].partition("/")[0]

    @property
    def bounds(self) -> list[str]:
        """What its values must be: `greater than 0`, `at most 1`."""
        words = {"gt": "greater than", "ge": "at least", "lt": "below", "le": "at most"}
        limits = ((words[kind], getattr(bound, kind, None)) for bound in self.field.metadata for kind in words)
        known = ((word, limit) for word, limit in limits if limit is not None)
        return [f"{word} {limit}" if isinstance(limit, int) else f"{word} {limit:g}" for word, limit in known]

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.field.json_schema_extra
        return extra if isinstance(extra, dict) else {"why": "", "flag": ""}

    def refusal(self, kind: str, value: Any) -> str:
        """The sentence for a value with which pydantic found an error of this kind."""
        if kind.endswith("_type"):
            return f"{self.name} must be of type {self.type.__name__}, not {value!r}"
        if kind == "literal_error":
            return f"{self.option} must be one of {', '.join(self.choices)}, not {value!r}"
        known = () if kind == "finite_number" else self.bounds
        ends = [bound for bound in known if bound.startswith(UPPER) == kind.startswith("less_than")]
        end = ends[0] if ends else "finite"
        why = "" if end == "finite" or end.endswith(" 0") else self._extra["why"]
        rule = "not be negative" if end == "at least 0" else f"be {end}{why}"
        return f"{self.option} must {rule}, not {f'{value:g}' if isinstance(value, float) else value}"


@dataclass(frozen=True, config=STRICT)
class Declared:
    """Base of a group of settings."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_sentence(cls, values: Any, handler: Any) -> Any:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            known = {setting.name: setting for setting in declared(cls)}
            name = first["loc"][0] if first["loc"] else None
            if name not in known or first["type"] == "missing":
                raise TypeError(f"{cls.__name__}: {first['msg']} ({name})") from None
            raise ConfigError(known[str(name)].refusal(first["type"], first["input"])) from None


def declared(group: type, names: Iterable[str] | None = None) -> Iterator[Setting]:
    """The settings of a group, in the order in which they are declared, or those with these names."""
    fields: dict[str, FieldInfo] = group.__pydantic_fields__  # type: ignore[attr-defined]
    return (Setting(name, fields[name]) for name in (fields if names is None else names))
