"""Reading requests of /v1/files and /v1/vector_stores. One table row per field; unknown fields are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from glm4.agent.uploads import Paging
from glm4.api.fields import BOOLEAN, OBJECT, STRING, Field, integer, is_int, mapping, only
from glm4.api.files.multipart import FormFile
from glm4.errors import InvalidRequestError, shown

PURPOSES = ("assistants", "user_data", "vision")
MOST_FOUND = 50
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE, _MAX_NAME = 16, 64, 512, 256


def _file(name: str, value: Any) -> FormFile:
    if not isinstance(value, FormFile):
        raise InvalidRequestError(f"{name} must be a file, with a filename", param=name)
    if not value.data:
        raise InvalidRequestError(f"{name} is empty", param=name)
    return value


def _purpose(name: str, value: Any) -> str:
    if value not in PURPOSES:
        raise InvalidRequestError(
            f"{name} must be {', '.join(PURPOSES)}, not {shown(value)}; nothing else is done with files here",
            param=name,
        )
    return str(value)


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise InvalidRequestError(f"{name} must be a text of at most {_MAX_NAME} characters", param=name)
    return value


def _ids(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > 100 or not all(isinstance(one, str) for one in value):
        raise InvalidRequestError(f"{name} must be a list of at most 100 ids of files", param=name)
    return list(dict.fromkeys(value))


def _pairs(*kinds: type) -> Any:
    def read(name: str, value: Any) -> dict[str, Any]:
        pairs = mapping(name, value)
        for key, one in pairs.items():
            right = isinstance(one, kinds) and (not isinstance(one, str) or len(one) <= _MAX_VALUE)
            if len(pairs) > _MAX_PAIRS or len(key) > _MAX_KEY or not right:
                raise InvalidRequestError(
                    f"{name} has at most {_MAX_PAIRS} keys of {_MAX_KEY} characters, with values of {_MAX_VALUE}",
                    param=name,
                )
        return dict(pairs)

    return read


def _chunking(name: str, value: Any) -> Mapping[str, Any]:
    """Checked, and without effect: passages follow the sentences and sections of a document."""
    given = mapping(name, value)
    if given.get("type") not in ("auto", "static", "other"):
        raise InvalidRequestError(f"{name}.type must be auto or static", param=f"{name}.type")
    return given


def _query(name: str, value: Any) -> list[str]:
    queries = [value] if isinstance(value, str) else value
    good = isinstance(queries, list) and 1 <= len(queries) <= 8
    if not good or not all(isinstance(one, str) and 0 < len(one) <= 4096 for one in queries):
        raise InvalidRequestError(f"{name} must be a text of 1 to 4096 characters, or up to 8 of them", param=name)
    return list(queries)


def _most(name: str, value: Any) -> int:
    if not is_int(value) or not 1 <= value <= MOST_FOUND:
        raise InvalidRequestError(f"{name} must be a whole number from 1 to {MOST_FOUND}", param=name)
    return int(value)


def _ranking(name: str, value: Any) -> float:
    """The least score."""
    given = {key: one for key, one in mapping(name, value).items() if one is not None}
    for key in given:
        if key not in ("ranker", "score_threshold"):
            raise InvalidRequestError(f"{name}.{key} is not supported; leave it out", param=f"{name}.{key}")
    only("auto", "none")(f"{name}.ranker", given.get("ranker", "auto"))
    least = given.get("score_threshold", 0)
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least <= 1:
        raise InvalidRequestError(f"{name}.score_threshold is from 0 to 1", param=f"{name}.score_threshold")
    return float(least)


def _members(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 1 <= len(value) <= 100:
        raise InvalidRequestError(f"{name} must be a list of 1 to 100 files", param=name)
    return [_member(f"{name}[{index}]", one) for index, one in enumerate(value)]


def _member(where: str, value: Any) -> dict[str, Any]:
    given = {key: one for key, one in mapping(where, value).items() if one is not None}
    for key in given:
        if key not in MEMBER_FIELDS:
            raise InvalidRequestError(f"{where}.{key} is not supported; leave it out", param=f"{where}.{key}")
    if "file_id" not in given:
        raise InvalidRequestError(f"{where}.file_id is missing", param=f"{where}.file_id")
    return {key: MEMBER_FIELDS[key].read(f"{where}.{key}", one) for key, one in given.items()}


_FILE_IDS = Field({"type": "array", "items": STRING, "maxItems": 100}, _ids)
_CHUNKING = Field({**OBJECT, "description": "without effect"}, _chunking)
_STATIC = {"name": Field({**STRING, "maxLength": _MAX_NAME}, _name), "metadata": Field(OBJECT, _pairs(str))}
_ATTRIBUTES = Field(OBJECT, _pairs(str, int, float, bool))

FILE_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "file": Field({"type": "string", "contentMediaType": "application/octet-stream"}, _file),
        "purpose": Field({"enum": list(PURPOSES)}, _purpose),
    }
)
STORE_FIELDS: Mapping[str, Field] = MappingProxyType(
    {**_STATIC, "description": _STATIC["name"], "file_ids": _FILE_IDS, "chunking_strategy": _CHUNKING}
)
CHANGE_STORE_FIELDS: Mapping[str, Field] = MappingProxyType(_STATIC)
MEMBER_FIELDS: Mapping[str, Field] = MappingProxyType(
    {"file_id": Field(STRING, _name), "attributes": _ATTRIBUTES, "chunking_strategy": _CHUNKING}
)
BATCH_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "file_ids": _FILE_IDS,
        "files": Field({"type": "array", "items": OBJECT, "minItems": 1, "maxItems": 100}, _members),
        "attributes": _ATTRIBUTES,
        "chunking_strategy": _CHUNKING,
    }
)
SEARCH_FIELDS: Mapping[str, Field] = MappingProxyType(
    {
        "query": Field({"anyOf": [STRING, {"type": "array", "items": STRING}]}, _query),
        "max_num_results": Field(integer(1, MOST_FOUND), _most),
        "ranking_options": Field(OBJECT, _ranking),
        "rewrite_query": Field({**BOOLEAN, "enum": [False]}, only(False)),
    }
)
_STAYS = "files stay here until they are deleted; delete it when it is no longer needed"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "expires_after": _STAYS,
        "expires_after[anchor]": _STAYS,
        "expires_after[seconds]": _STAYS,
        "filters": "search for words, and choose among the results by their attributes",
    }
)
"""Fields of OpenAI's schema that are not supported, and why."""


def read_paging(query: Mapping[str, str], most: int, default: int, *others: str) -> Paging:
    """The page of a list that a query asks for.

    Args:
        others: further parameters, read elsewhere.

    Raises:
        InvalidRequestError: a parameter is unknown or has an invalid value.
    """
    for name in query:
        if name not in ("limit", "order", "after", "before", *others):
            raise InvalidRequestError(f"unsupported parameter {shown(name)}", param=name[:100])
    limit, order = query.get("limit", str(default)), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 7 and 1 <= int(limit) <= most):
        raise InvalidRequestError(f"limit must be a whole number from 1 to {most}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order must be asc or desc", param="order")
    return Paging(int(limit), "asc" if order == "asc" else "desc", query.get("after"), query.get("before"))
