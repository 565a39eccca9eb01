"""Answers of /v1/files and /v1/vector_stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm4.agent.uploads import Upload
from glm4.agent.vector_stores import Member, VectorStore


def file_object(upload: Upload) -> dict[str, Any]:
    """OpenAI's `file`."""
    return {
        "id": upload.id, "object": "file", "bytes": upload.file.nbytes, "created_at": int(upload.created),
        "filename": upload.file.name, "purpose": upload.purpose, "status": "processed", "expires_at": None,
        "status_details": None,
    }  # fmt: skip


def store_object(store: VectorStore) -> dict[str, Any]:
    """OpenAI's `vector_store`."""
    return {
        "id": store.id, "object": "vector_store", "created_at": int(store.created), "name": store.name,
        "usage_bytes": store.nbytes, "file_counts": _counts(store.completed, store.failed), "status": "completed",
        "expires_after": None, "expires_at": None, "last_active_at": int(store.active),
        "metadata": dict(store.metadata),
    }  # fmt: skip


def member_object(member: Member) -> dict[str, Any]:
    """OpenAI's `vector_store.file`. Its passages are not chunks of a size, which OpenAI calls "other"."""
    problem = {"code": "invalid_file", "message": member.problem} if member.problem else None
    return {
        "id": member.upload.id, "object": "vector_store.file", "created_at": int(member.created),
        "usage_bytes": member.upload.file.nbytes, "vector_store_id": member.store,
        "status": "failed" if problem else "completed", "last_error": problem, "attributes": dict(member.attributes),
        "chunking_strategy": {"type": "other"},
    }  # fmt: skip


def batch_object(batch: str, store: str, members: Sequence[Member]) -> dict[str, Any]:
    """OpenAI's `vector_store.files_batch`."""
    failed = sum(bool(member.problem) for member in members)
    return {
        "id": batch, "object": "vector_store.files_batch", "created_at": int(members[0].created),
        "vector_store_id": store, "status": "completed", "file_counts": _counts(len(members) - failed, failed),
    }  # fmt: skip


def listed(objects: Sequence[Mapping[str, Any]], *, more: bool) -> dict[str, Any]:
    """A page of a list."""
    ids = [one["id"] for one in objects]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": list(objects), "first_id": first, "last_id": last, "has_more": more}


def deleted(name: str, kind: str) -> dict[str, Any]:
    """What is left of an object."""
    return {"id": name, "object": kind, "deleted": True}


def found_object(member: Member, score: float, text: str) -> dict[str, Any]:
    """A passage that a search has found."""
    return {
        "file_id": member.upload.id, "filename": member.upload.file.name, "score": score,
        "attributes": dict(member.attributes), "content": [{"type": "text", "text": text}],
    }  # fmt: skip


def found_page(queries: Sequence[str], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a search has found."""
    kind = "vector_store.search_results.page"
    return {"object": kind, "search_query": list(queries), "data": list(found), "has_more": False, "next_page": None}


def content_page(text: str) -> dict[str, Any]:
    """The text of a file, as it is searched."""
    content = [{"type": "text", "text": text}]
    return {"object": "vector_store.file_content.page", "data": content, "has_more": False, "next_page": None}


def _counts(completed: int, failed: int) -> dict[str, int]:
    total = completed + failed
    return {"in_progress": 0, "completed": completed, "failed": failed, "cancelled": 0, "total": total}
