"""JSON schemas of Python's types, and the way back: from JSON that fits such a schema to a value of the type.

Types: str, int, float, bool, None, Any; unions; Literal and Enum; lists, sets, tuples, dictionaries; date, time,
datetime, UUID; TypedDict, NamedTuple, dataclasses and pydantic models (recognized by their methods; pydantic is not
imported). `Annotated[type, "description"]` describes; other annotations say nothing here.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from glm4.agent.arguments import ArgumentsError, fits

Convert = Callable[[Any, str], Any]
"""(JSON that fits the schema, where it stands) → the value. Raises ArgumentsError."""


class UnsupportedTypeError(Exception):
    """A type that has no schema; the message says what to use instead."""


@dataclass(frozen=True)
class JSONType:
    """A type as JSON has it."""

    schema: dict[str, Any]
    convert: Convert


def _same(value: Any, where: str) -> Any:
    return value


_PLAIN: Mapping[Any, JSONType] = {
    str: JSONType({"type": "string"}, _same),
    int: JSONType({"type": "integer"}, lambda value, where: int(value)),
    float: JSONType({"type": "number"}, lambda value, where: float(value)),
    bool: JSONType({"type": "boolean"}, _same),
    None: JSONType({"type": "null"}, _same),
    type(None): JSONType({"type": "null"}, _same),
    Any: JSONType({}, _same),
    object: JSONType({}, _same),
}
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_SETS = (set, collections.abc.Set, collections.abc.MutableSet)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_INSTEAD = {"Path": "a str", "bytes": "a str", "timedelta": "a number of seconds", "Decimal": "a str or a float"}
_WRAPPERS = ("Required", "NotRequired", "ReadOnly", "Final")


class TypeSchemas:
    """Makes the schemas of one function.

    Attributes:
        definitions: schemas that others refer to as `#/$defs/NAME`; part of the whole schema.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._unfinished: set[Any] = set()  # types of which a part is being made
        self._recursive: dict[Any, JSONType] = {}  # types that have themselves as parts, once made

    def of(self, hint: Any) -> JSONType:
        """The type of a hint.

        Raises:
            UnsupportedTypeError: no JSON has that type.
        """
        plain = _PLAIN.get(hint) if isinstance(hint, collections.abc.Hashable) else None
        if plain is not None:
            return JSONType(dict(plain.schema), plain.convert)
        if hasattr(hint, "__supertype__"):  # NewType
            return self.of(hint.__supertype__)
        if type(hint).__name__ == "TypeAliasType":
            return self.of(hint.__value__)
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self._described(arguments[0], arguments[1:])
        if getattr(origin, "_name", None) in _WRAPPERS or getattr(hint, "_name", None) in _WRAPPERS:
            return self.of(arguments[0])
        if origin in (Union, types.UnionType):
            return self._union(arguments)
        if origin is Literal:
            return _constants([(value, value) for value in arguments])
        return self._collection(origin or hint, arguments) or self._class(hint)

    def _described(self, hint: Any, notes: tuple[Any, ...]) -> JSONType:
        made = self.of(hint)
        said = next((note for note in notes if isinstance(note, str)), None)
        said = said or next((n.description for n in notes if isinstance(getattr(n, "description", None), str)), None)
        return made if not said else JSONType({**made.schema, "description": said}, made.convert)

    def _union(self, hints: tuple[Any, ...]) -> JSONType:
        members = [self.of(hint) for hint in sorted(hints, key=lambda hint: hint is float)]  # 3 is an int first
        simple = [member.schema["type"] for member in members if member.schema.keys() == {"type"}]
        schema: dict[str, Any] = {"anyOf": [member.schema for member in members]}
        if len(simple) == len(members) and all(isinstance(name, str) for name in simple):
            schema = {"type": list(dict.fromkeys(simple))}

        def convert(value: Any, where: str) -> Any:
            errors = []
            for member in members:
                if fits(value, member.schema, self._root):
                    try:
                        return member.convert(value, where)
                    except ArgumentsError as error:
                        errors.append(str(error))
            raise ArgumentsError(" or ".join(errors) or f"{where} fits none of its types")

        return JSONType(schema, convert)

    @property
    def _root(self) -> dict[str, Any]:
        return {"$defs": self.definitions}

    def _collection(self, kind: Any, arguments: tuple[Any, ...]) -> JSONType | None:
        """Lists, sets, tuples and dictionaries; None for other types."""
        if kind in _LISTS or kind is collections.abc.MutableSequence:
            return self._items(list, arguments[:1])
        if kind in _SETS or kind is frozenset:
            return self._items(frozenset if kind is frozenset else set, arguments[:1])
        if kind is tuple:
            several = len(arguments) == 2 and arguments[1] is Ellipsis
            return self._items(tuple, arguments[:1]) if several or not arguments else self._tuple(arguments)
        return self._dictionary(arguments) if kind in _DICTS else None

    def _items(self, make: Callable[[list[Any]], Any], arguments: tuple[Any, ...]) -> JSONType:
        item = self.of(arguments[0] if arguments else Any)
        unique = {"uniqueItems": True} if make in (set, frozenset) else {}

        def convert(value: list[Any], where: str) -> Any:
            found = [item.convert(one, f"{where}[{index}]") for index, one in enumerate(value)]
            try:
                return make(found)
            except TypeError:  # a set of what cannot be in one
                raise ArgumentsError(f"{where} may hold no objects and no arrays") from None

        return JSONType({"type": "array", **({"items": item.schema} if item.schema else {}), **unique}, convert)

    def _tuple(self, arguments: tuple[Any, ...]) -> JSONType:
        items = [self.of(hint) for hint in arguments]
        schema: dict[str, Any] = {"type": "array", "prefixItems": [item.schema for item in items], "items": False}
        schema |= {"minItems": len(items), "maxItems": len(items)}

        def convert(value: list[Any], where: str) -> Any:
            return tuple(
                item.convert(one, f"{where}[{index}]")
                for index, (item, one) in enumerate(zip(items, value, strict=True))
            )

        return JSONType(schema, convert)

    def _dictionary(self, arguments: tuple[Any, ...]) -> JSONType:
        key, item = (self.of(hint) for hint in arguments or (str, Any))
        schema: dict[str, Any] = {"type": "object"}
        if item.schema:
            schema["additionalProperties"] = item.schema
        if "enum" in key.schema and all(isinstance(name, str) for name in key.schema["enum"]):
            schema["propertyNames"] = {"enum": key.schema["enum"]}
        elif key.schema == {"type": "integer"}:
            schema["propertyNames"] = {"pattern": "^-?[0-9]{1,18}$"}
        elif key.schema.get("type") != "string":
            raise UnsupportedTypeError("keys of a dictionary must be str or int, or a Literal or Enum of str")

        def convert(value: dict[str, Any], where: str) -> Any:
            found = {}
            for name, one in value.items():
                try:
                    found[key.convert(name, f"a key of {where}")] = item.convert(one, f"{where}.{name}")
                except (ValueError, KeyError):  # of int, or of an enumeration
                    raise ArgumentsError(f"{where} may not have the key {name!r}") from None
            return found

        return JSONType(schema, convert)

    def _class(self, hint: Any) -> JSONType:
        kind = get_origin(hint) or hint
        name = getattr(hint, "__name__", str(hint))
        if isinstance(kind, type):
            if issubclass(kind, enum.Enum):
                return _constants([(member.value, member) for member in kind])
            if kind in _TEXTS:
                return _text(kind)
            if callable(getattr(kind, "model_json_schema", None)) and callable(getattr(kind, "model_validate", None)):
                return self._model(kind)
            if typing.is_typeddict(kind) or type(kind).__name__ == "_TypedDictMeta":
                return self._object(kind, _typed_dict_fields(kind), dict)
            if dataclasses.is_dataclass(kind):
                return self._object(kind, _dataclass_fields(kind), kind)
            if issubclass(kind, tuple) and hasattr(kind, "_fields"):
                return self._object(kind, _named_tuple_fields(kind), kind)
        instead = _INSTEAD.get(name, "a str, a dataclass or another type that JSON has")
        raise UnsupportedTypeError(f"a model cannot write {name}; take {instead}")

    def _object(self, kind: Any, fields: dict[str, tuple[Any, bool]], make: Callable[..., Any]) -> JSONType:
        """A class with fields: name → (hint, whether it must be given)."""
        if kind in self._unfinished:

            def convert_later(value: Any, where: str) -> Any:
                return self._recursive[kind].convert(value, where)  # by then another one, see below

            self._recursive[kind] = JSONType({"$ref": f"#/$defs/{kind.__name__}"}, convert_later)
        if kind in self._recursive:
            return self._recursive[kind]
        self._unfinished.add(kind)
        parts = {name: self.of(hint) for name, (hint, _) in fields.items()}
        self._unfinished.remove(kind)
        schema = object_schema(
            {name: part.schema for name, part in parts.items()}, [name for name in fields if fields[name][1]]
        )

        def convert(value: dict[str, Any], where: str) -> Any:
            given = {name: parts[name].convert(one, f"{where}.{name}") for name, one in value.items()}
            try:
                return make(**given)
            except (TypeError, ValueError) as error:  # what its own checks say
                raise ArgumentsError(f"{where}: {error}") from None

        if kind not in self._recursive:
            return JSONType(schema, convert)
        self.definitions[kind.__name__] = schema
        self._recursive[kind] = JSONType(self._recursive[kind].schema, convert)
        return self._recursive[kind]

    def _model(self, kind: Any) -> JSONType:
        schema: dict[str, Any] = kind.model_json_schema(ref_template=f"#/$defs/{kind.__name__}.{{model}}")
        for name, definition in schema.pop("$defs", {}).items():
            self.definitions[f"{kind.__name__}.{name}"] = definition

        def convert(value: Any, where: str) -> Any:
            try:
                return kind.model_validate(value)
            except ValueError as error:  # of pydantic: with all that is wrong
                errors: Callable[[], list[dict[str, Any]]] = getattr(error, "errors", list)
                found = [f"{'.'.join((where, *map(str, one['loc'])))}: {one['msg']}" for one in errors()]
                raise ArgumentsError("; ".join(found) or f"{where}: {error}") from None

        return JSONType(schema, convert)


def object_schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """An object with these properties and no others."""
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema if required else {name: value for name, value in schema.items() if name != "required"}


def _constants(members: Sequence[tuple[Any, Any]]) -> JSONType:
    """One of some values: pairs of JSON and what it means."""
    if not all(written is None or isinstance(written, (str, int, float, bool)) for written, _ in members):
        # An enumeration of other things is chosen from by name.
        members = [(getattr(meant, "name", None), meant) for _, meant in members]
        if not all(isinstance(name, str) for name, _ in members):
            raise UnsupportedTypeError("the values of a Literal must be texts, numbers, bool or None")

    def convert(value: Any, where: str) -> Any:
        for written, meant in members:
            if written == value and isinstance(written, bool) == isinstance(value, bool):
                return meant
        raise KeyError(value)

    return JSONType({"enum": [written for written, _ in members]}, convert)


def _text(kind: Any) -> JSONType:
    name, example = _TEXTS[kind]

    def convert(value: str, where: str) -> Any:
        try:
            if kind is uuid.UUID:
                return uuid.UUID(value)
            # Before Python 3.11 these do not read a Z.
            return kind.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            raise ArgumentsError(f"{where} must be a {name} such as {example}, not {value[:80]!r}") from None

    return JSONType({"type": "string", "format": name}, convert)


_TEXTS: Mapping[Any, tuple[str, str]] = {
    datetime.datetime: ("date-time", "2024-05-31T18:30:00Z"),
    datetime.date: ("date", "2024-05-31"),
    datetime.time: ("time", "18:30:00Z"),
    uuid.UUID: ("uuid", "123e4567-e89b-42d3-a456-426614174000"),
}


def _typed_dict_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    fields = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        wrapper = getattr(get_origin(hint), "_name", None) or getattr(hint, "_name", None)
        required = {"Required": True, "NotRequired": False}.get(str(wrapper), name in kind.__required_keys__)
        fields[name] = (hint, required)
    return fields


def _dataclass_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    hints, missing = get_type_hints(kind, include_extras=True), dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
        if field.init
    }


def _named_tuple_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: (hints.get(name, Any), name not in kind._field_defaults) for name in kind._fields}
