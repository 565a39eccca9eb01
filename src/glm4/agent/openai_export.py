"""Conversations of OpenAI's data export (`conversations.json`) as documents that `session_export` reads.

A conversation there is a tree of nodes, `mapping`, each with a message or none; `current_node` is the end of the branch
that is shown. Code, its output and pages that were read are messages of their own, which belong to one answer here.

Not covered: pictures, recordings and other files, which are not in the export (a note says so); hidden messages and
instructions; where an answer named its sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4.agent.openai_messages import Piece, read_piece
from glm4.agent.session_checks import as_date, as_list, as_object, as_text
from glm4.errors import InvalidRequestError

MAX_NODES = 50_000
"""Of one conversation."""


def is_openai(document: object) -> bool:
    """Whether this is a conversation of OpenAI's export."""
    return isinstance(document, Mapping) and "mapping" in document and "format" not in document


def from_openai(document: object) -> dict[str, Any]:
    """A conversation as `session_export.from_document` takes it.

    Raises:
        InvalidRequestError: it is not such a conversation; says where.
    """
    given = as_object(document, "the conversation")
    nodes = _read_nodes(as_object(given.get("mapping"), "mapping"))
    title = given.get("title")
    created = _date(given, "create_time", "create_time")
    ids = _in_order(nodes)
    messages = _Messages(nodes)
    for name in ids:
        messages.add(name)
    if not messages.made:
        raise InvalidRequestError("there is no message in it", param="mapping")
    current = given.get("current_node")
    if current is not None and (not isinstance(current, str) or current not in nodes):
        raise InvalidRequestError("current_node is not one of the nodes", param="current_node")
    shown = messages.of.get(current) if current is not None else None
    return {
        "format": "glm4-conversation",
        "version": 1,
        "title": "" if title is None else as_text(title, "title"),
        "created": created,
        "updated": _date(given, "update_time", "update_time") or created,
        "leaf": str(len(messages.made) - 1 if shown is None else shown),
        "messages": [one.as_dict(str(at), created) for at, one in enumerate(messages.made)],
    }


@dataclass
class _Node:
    parent: str | None
    children: list[str]
    piece: Piece | None
    above: str | None = None
    """The nearest node above that has something to show."""
    below: int = 0
    """Nodes whose `above` this is."""


def _read_nodes(mapping: Mapping[str, Any]) -> dict[str, _Node]:
    if len(mapping) > MAX_NODES:
        raise InvalidRequestError(f"mapping has more than {MAX_NODES:,} nodes", param="mapping")
    nodes: dict[str, _Node] = {}
    for name, raw in mapping.items():
        where = f"mapping.{name[:80]}"
        node = as_object(raw, where)
        parent, message = node.get("parent"), node.get("message")
        if parent is not None and (not isinstance(parent, str) or parent not in mapping):
            raise InvalidRequestError(f"{where}.parent is not one of the nodes", param=where)
        children = [
            as_text(one, f"{where}.children") for one in as_list(node.get("children") or [], f"{where}.children")
        ]
        piece = None if message is None else read_piece(as_object(message, f"{where}.message"), f"{where}.message")
        nodes[name] = _Node(parent, children, piece)
    return nodes


def _in_order(nodes: Mapping[str, _Node]) -> list[str]:
    """All nodes, parents before children, siblings as their parent has them.

    Raises:
        InvalidRequestError: some are their own ancestors.
    """
    below: dict[str | None, list[str]] = {}
    for name, node in nodes.items():
        below.setdefault(node.parent, []).append(name)
    for parent, names in below.items():
        rank = {name: at for at, name in enumerate(nodes[parent].children)} if parent is not None else {}
        names.sort(key=lambda name: rank.get(name, len(rank)))
    found: list[str] = []
    left = below.get(None, [])[::-1]
    while left:
        name = left.pop()
        found.append(name)
        left += below.get(name, [])[::-1]
        node = nodes[name]
        if node.parent is not None:
            over = nodes[node.parent]
            node.above = node.parent if over.piece is not None else over.above
            if node.piece is not None and node.above is not None:
                nodes[node.above].below += 1
    if len(found) != len(nodes):
        raise InvalidRequestError("mapping is not a tree: some nodes are their own ancestors", param="mapping")
    return found


@dataclass
class _Made:
    """A message of ours, of one or more nodes."""

    parent: int | None
    pieces: list[Piece]

    def as_dict(self, name: str, created: float) -> dict[str, Any]:
        first = self.pieces[0]
        parts = list(_joined(self.pieces, name))
        told = "\n\n".join(piece.told for piece in self.pieces if piece.told)
        return {
            "id": name,
            "parent": None if self.parent is None else str(self.parent),
            "role": first.role,
            "status": self.pieces[-1].status,
            "model": next((piece.model for piece in reversed(self.pieces) if piece.model), ""),
            "messages": [{"role": first.role, "content": told}] if told else [],
            "parts": parts,
            "created": first.created or created,
        }


@dataclass
class _Messages:
    """Makes messages of nodes; `of` is the message in which each node is, or the one above it."""

    nodes: Mapping[str, _Node]
    made: list[_Made] = field(default_factory=list)
    of: dict[str, int] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """The next node in order."""
        node = self.nodes[name]
        above = None if node.above is None else self.of[node.above]
        if node.piece is None:
            if above is not None:
                self.of[name] = above
            return
        if above is not None and node.above is not None:
            before = self.nodes[node.above]
            if before.below == 1 and before.piece is not None and before.piece.role == node.piece.role == "assistant":
                self.made[above].pieces.append(node.piece)
                self.of[name] = above
                return
        self.of[name] = len(self.made)
        self.made.append(_Made(above, [node.piece]))


def _joined(pieces: list[Piece], name: str) -> Iterator[dict[str, Any]]:
    """Their parts; what a tool said belongs to its call."""
    call: dict[str, Any] | None = None
    count = 0
    for piece in pieces:
        for part in piece.parts:
            if part["kind"] != "tool":
                yield part
            elif part.get("output") and call is not None:
                call |= {"output": part["output"], "state": part["state"]}
                call = None
            else:
                made = {**part, "call": f"{name}-{count}", "files": []}
                count += 1
                call = None if part.get("output") else made
                yield made


def _date(given: Mapping[str, Any], key: str, where: str) -> float:
    return 0.0 if given.get(key) is None else as_date(given[key], where)
