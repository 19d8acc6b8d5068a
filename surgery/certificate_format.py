"""The fields of a certificate, and its canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery.errors import SurgeryError

FORMAT = "knowledge-surgery certificate 2"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Salt = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Weights(_Strict):
    before: Digest | None
    after: Digest


class _Edit(_Strict):
    digest: Digest
    method: str
    claim: str
    facts: int
    settings: dict[str, Any]
    changes: list[dict[str, Any]]


class _OfFact(_Strict):
    digest: Digest
    overall: str
    depth: str | None
    claims: dict[str, Any]
    prompts: list[dict[str, Any]]
    attacks: list[dict[str, Any]]
    erased: float | None


class _Content(_Strict):
    format: Literal["knowledge-surgery certificate 2"]
    tool: str
    created: str
    model: dict[str, Any]
    weights: _Weights
    edit: _Edit | None
    claim: str
    profile: str
    seed: int
    exit_code: int
    meaning: str
    salt: Salt
    facts: list[_OfFact]
    drift: dict[str, Any]
    beside: dict[str, Any]
    thresholds: dict[str, Any]
    not_tested: list[str]
    public_key: Digest | None


def check_content(content: Mapping[str, Any]) -> None:
    """Refuse what a certificate cannot say.

    Raises:
        SurgeryError: a field is missing, too much, or of another kind.
    """
    try:
        _Content.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SurgeryError(
            f"this is no certificate of this package ({place}: {first['msg']}); give a file that --certificate wrote"
        ) from error


def canonical(record: Any) -> bytes:
    """JSON in its one form: keys in order, no spaces, UTF-8."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
