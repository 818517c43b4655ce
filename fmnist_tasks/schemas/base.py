"""The base of all stored documents, and their validation.

A document has the version of its schema. A document with another version, or with a missing, unknown or mistyped field,
is refused; the message names the document and says what to do.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.text import make_printable

SCHEMA_VERSION = 3  # of all documents, since 0.3

_MIGRATED_VERSION = 2  # the earlier version that is migrated when it is read
_FAULTS = {"missing": "missing", "extra_forbidden": "unknown"}  # by pydantic's error type; shorter than its messages
_EDITED = "probably edited by hand, and is not used. Restore it from a backup"
_MAX_NAME_LENGTH = 80  # characters of a field's name in a message


def _require_utc(time: str) -> str:
    if datetime.fromisoformat(time).utcoffset() != timedelta(0):
        raise ValueError("is not a time in UTC")
    return time


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]  # lower and upper bound
Time = Annotated[str, AfterValidator(_require_utc)]  # UTC, ISO 8601
VERSION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Version = Annotated[str, Field(pattern=VERSION_PATTERN)]  # of a release
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.~:+-]+$")]


class Model(BaseModel):
    """A document or a part of one: immutable, with exactly these fields of exactly these types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self.model_dump(mode="json")


class Reference(Model):
    """A reference to stored bytes: key, SHA-256 (hex) and size."""

    uri: str  # the key
    sha256: Sha256
    bytes: Count


class RunParameters(TypedDict):
    """The parameters of a run in a document. Other versions of this project may have more of them."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    profile: str
    seed: int
    accuracy_threshold: float | None
    policy: dict[str, Any]


class Document(Model):
    """A document that is stored as one object."""

    schema_version: Literal[3] = 3

    @classmethod
    def parse(cls, content: dict[str, Any], key: str) -> Self:
        """Validate the content of the object at a key; raises :class:`IntegrityError` with its faults."""
        version = content.get("schema_version", 1)
        if type(version) is int and version == _MIGRATED_VERSION:
            content, version = cls.migrate(content) | {"schema_version": SCHEMA_VERSION}, SCHEMA_VERSION
        if type(version) is not int or version != SCHEMA_VERSION:
            if version == 1 and version is not True:
                remedy = "version 0.1 of this project wrote it; start with an empty store, or install 0.1 to read it"
            elif type(version) is int and version > SCHEMA_VERSION:
                remedy = "install the version of this project that wrote it"
            else:
                remedy = f"it was {_EDITED}"
            raise IntegrityError(f"{key} has schema version {version!r:.20}, not {SCHEMA_VERSION}: {remedy}")
        try:
            _require_finite_unicode(content)
            return cls.model_validate(content)
        except (ValueError, RecursionError) as error:
            faults = describe_faults(error) if isinstance(error, ValidationError) else str(error)
            raise IntegrityError(f"{key}: {faults}; it was {_EDITED}") from error

    @classmethod
    def migrate(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a document of 0.2 in the present form; only some kinds of documents have changed."""
        return content


def _require_finite_unicode(content: dict[str, Any]) -> None:
    """Raise ValueError for NaN, infinity, and text with lone surrogates, which no page or file can contain."""
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text has a lone surrogate, so it is not valid Unicode") from error
    except ValueError as error:
        raise ValueError("a number is NaN or infinite") from error


def describe_faults(error: ValidationError) -> str:
    """Return the first three faults of a document, each with the name of its field."""
    faults = [
        f"{_name_field(fault['loc'])}{_FAULTS.get(fault['type'], fault['msg'].removeprefix('Value error, '))}"
        for fault in error.errors()
    ]
    more = f"; and {len(faults) - 3} more faults" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more


def _name_field(path: tuple[int | str, ...]) -> str:
    """The path to a field and a colon, shortened: a document from elsewhere may have names of any length."""
    name = make_printable(".".join(map(str, path)))
    name = name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…"
    return f"{name}: " if path else ""
