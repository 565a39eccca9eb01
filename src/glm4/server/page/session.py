"""Endpoints of the page's session: what is served and to whom, log in, log out."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.sampling_params import SamplingParams
from glm4.server.agent.endpoints import offered
from glm4.server.agent.state import AgentState
from glm4.server.cookies import SECONDS, SESSION, BrowserSession, cookie_name
from glm4.server.endpoints.models import sees, served_names
from glm4.server.errors import ApiError
from glm4.server.identity import KEY_ID, key_id
from glm4.server.page.state import NO_STORE, page_state
from glm4.server.registry import ServedModel
from glm4.server.state import find_state, server_state
from glm4.version import __version__

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "max_tokens",
)  # fmt: skip


async def session(request: Request) -> Response:
    """What the page needs to know at its start; without a key, only that one is needed."""
    known = request.scope["state"]
    return JSONResponse(_session(request, known.get(KEY_ID), known.get(SESSION)), headers=NO_STORE)


async def login(request: Request) -> Response:
    """Begin a session for who knows a key."""
    if not set(request.headers.getlist("sec-fetch-site")) <= {"same-origin", "none"}:
        raise ApiError(403, "another page may have sent this", code="cross_site")
    body = await server_state(request).read(request)
    key = body.get("key")
    if not isinstance(key, str):
        raise ApiError(400, "key must be a string", "key", "invalid_type")
    page = page_state(request)
    if not server_state(request).config.api_keys:
        return JSONResponse(_session(request, None, None), headers=NO_STORE)
    with page.attempts.one(request.client.host if request.client else ""):
        found = page.cookies.known_key(key.strip())  # it may have been pasted with a line end
        if found is None:
            await page.attempts.failed()
            raise ApiError(401, "this is not a valid key", "key", "invalid_api_key")
    begun, value = page.cookies.begin(found)
    answer = JSONResponse(_session(request, found, begun), headers=NO_STORE)
    _set_cookie(answer, request, value, SECONDS)
    return answer


async def logout(request: Request) -> Response:
    """End the session, and let the browser forget it."""
    begun: BrowserSession | None = request.scope["state"].get(SESSION)
    if begun is not None:
        page_state(request).cookies.end(begun)
    # Pictures of conversations are in the browser's cache for long.
    answer = JSONResponse({"done": True}, headers={**NO_STORE, "Clear-Site-Data": '"cache"'})
    _set_cookie(answer, request, "", 0)
    return answer


def _set_cookie(answer: Response, request: Request, value: str, seconds: int) -> None:
    answer.set_cookie(
        cookie_name(request.headers), value, max_age=seconds, path="/", secure=_is_encrypted(request.url.scheme,
        request.headers), httponly=True, samesite="strict",
    )  # fmt: skip


def _is_encrypted(scheme: str, headers: Headers) -> bool:
    return scheme == "https" or headers.get("x-forwarded-proto", "").lower() == "https"


def is_operator(request: Request) -> bool:
    """Whether a request comes from who runs the server: it has the first key, or there are none."""
    return _is_operator(request, request.scope["state"].get(KEY_ID))


def _is_operator(request: Request, owner: str | None) -> bool:
    keys = server_state(request).config.api_keys
    return not keys or owner == key_id(keys[0])


def _session(request: Request, owner: str | None, begun: BrowserSession | None) -> dict[str, Any]:
    server, agent = server_state(request), find_state(request.app, AgentState).config
    login = bool(server.config.api_keys)
    known = not login or owner is not None
    operator = known and _is_operator(request, owner)
    return {
        "version": __version__,
        "login": login,
        "user": known,
        "token": begun.token if begun else "",
        "operator": operator,
        "training": operator and server.config.training is not None,
        "models": [_model(*one, operator=operator) for one in served_names(server.models)] if known else [],
        "tools": offered(agent) if known else [],
        "saved": agent.sessions is not None,
        "max_upload_bytes": agent.max_upload_bytes,
    }


def _model(model: ServedModel, name: str, parent: str | None, *, operator: bool) -> dict[str, Any]:
    llm = None if model.engine is None else model.llm
    return {
        "name": name,
        "state": model.state,
        "stage": model.stage,
        "progress": model.progress if llm is None else None,
        # It may name folders of this machine.
        "error": (model.error if operator else None) or ("the server's log says why" if model.failed else None),
        "context": None if llm is None else llm.info.max_model_len,
        "sees": llm is not None and sees(llm),
        "parent": parent,
        "sampling": {} if llm is None else _sampling(llm.default_sampling_params()),
    }


def _sampling(defaults: SamplingParams) -> dict[str, Any]:
    """The model's own values of the options that the page has controls for."""
    return {name: getattr(defaults, name) for name in _SAMPLING}
