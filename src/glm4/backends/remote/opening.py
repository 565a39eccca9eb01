"""What we check about a server before using it: its model, limits and tokenizer, and how it returns token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

from glm4.backends.base import ModelFiles
from glm4.backends.remote.client import Exchange, Server
from glm4.backends.remote.completion import COMPLETIONS, GENERATE, Endpoint
from glm4.backends.remote.options import RemoteOptions
from glm4.errors import Glm4Error, InvalidRequestError, ModelNotFoundError, RemoteError, RemoteUnavailableError

# Scripts, digits, whitespace, code and 4-byte characters: vocabularies differ in how they split these.
PROBE = "Hello, 世界! naïve cafés, 1234567 tokens\n\n\tdef f(x): return x ** 2  # Привет, 🙂 안녕"
_MAX_SHOWN = 10
_MAX_SPECIALS = 256


def open_endpoint(server: Server, options: RemoteOptions, files: ModelFiles) -> Endpoint:
    """Ask a server what it serves, and check that it works with our tokenizer.

    Raises:
        ModelNotFoundError: it does not serve the model.
        InvalidRequestError: its context is shorter than `options.max_model_len`.
        RemoteError: it cannot be reached, does not return token ids, or has a different tokenizer.
    """
    entries = _models(server, options)
    entry = _choose(server, entries, options.remote_model, files.name)
    model = str(entry["id"])
    names = {str(one["id"]) for one in entries if _root(one) == _root(entry) and not one.get("parent")}
    probe = _probe(server, options, COMPLETIONS, _completion_probe(model))
    _compare(server, files, probe.get("prompt_token_ids"), _tokenized(server, options, model))
    _compare_specials(server, options, files, model)
    # Only now, because an id that it does not know ends a vLLM server without a tokenizer.
    token_route = _has_token_route(server, options, model, files)
    ids_in_logprobs = not token_route and not isinstance(probe.get("token_ids"), list)
    if ids_in_logprobs and "token_id:" not in json.dumps(probe.get("logprobs")):
        raise RemoteError(
            f"{server.name} does not give token ids back; its /v1/completions must know return_token_ids (vLLM 0.10.2,"
            " SGLang, glm4 serve) or return_tokens_as_token_ids"
        )
    banned = [] if entry.get("owned_by") == "glm4" else files.tokenizer.unnamed_ids(files.vocab_size).tolist()
    return Endpoint(
        model=model,
        adapters=tuple(str(one["id"]) for one in entries if one.get("parent") in names),
        vocab_size=files.vocab_size,
        max_model_len=_context(server, entry, options, files),
        path=GENERATE if token_route else COMPLETIONS,
        ids_in_logprobs=ids_in_logprobs,
        bias={str(token): -100.0 for token in banned},
    )


def _models(server: Server, options: RemoteOptions) -> list[Mapping[str, Any]]:
    listed = server.json("GET", "/v1/models", timeout=options.first_token_timeout)
    data = listed.get("data") if isinstance(listed, Mapping) else None
    entries = [one for one in data or () if isinstance(one, Mapping) and isinstance(one.get("id"), str)]
    if not entries:
        raise RemoteError(f"{server.name}/v1/models lists no models; is this the right address?")
    return entries


def _root(entry: Mapping[str, Any]) -> object:
    """The model an entry's name stands for; several names may stand for one model."""
    return entry.get("root") or entry["id"]


def _choose(server: Server, entries: Sequence[Mapping[str, Any]], wanted: str | None, ours: str) -> Mapping[str, Any]:
    models = [one for one in entries if not one.get("parent")]
    if wanted is not None:
        found = [one for one in entries if one["id"] == wanted]
    elif len({str(_root(one)) for one in models}) == 1:
        found = models
    else:
        name = ours.rstrip("/").rpartition("/")[2].lower()
        found = [one for one in models if str(one["id"]).rpartition("/")[2].lower() == name]
    if not found:
        shown = ", ".join(server.printable(str(one["id"])) for one in models[:_MAX_SHOWN])
        raise ModelNotFoundError(
            f"{server.name} does not serve {wanted or ours!r}; name one of its models with remote_model: {shown}"
        )
    return found[0]


def _context(server: Server, entry: Mapping[str, Any], options: RemoteOptions, files: ModelFiles) -> int:
    """The limit on prompt + answer, in tokens."""
    theirs = entry.get("max_model_len")
    limit = theirs if type(theirs) is int and theirs > 0 else files.context
    wanted = options.max_model_len or limit
    if wanted is None:
        raise InvalidRequestError(
            f"{server.name} does not say how long its context is; give max_model_len (`--context`)",
            param="max_model_len",
        )
    if limit is not None and wanted > limit:
        raise InvalidRequestError(
            f"a context of {wanted} tokens (max_model_len, `--context`) exceeds the {limit} of {server.name}",
            param="max_model_len",
        )
    return wanted


def _completion_probe(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": PROBE,
        "max_tokens": 1,
        "temperature": 0.0,
        "stream": True,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def _has_token_route(server: Server, options: RemoteOptions, model: str, files: ModelFiles) -> bool:
    """Whether the server continues ids, streams ids, and scores them by id; older vLLM streams none or names them."""
    sampling = {"max_tokens": 1, "temperature": 0.0, "logprobs": 0}
    body = {"model": model, "token_ids": files.tokenizer.encode(PROBE), "stream": True, "sampling_params": sampling}
    try:
        choice = _probe(server, options, GENERATE, body)
        (token,), (entry,) = choice["token_ids"], choice["logprobs"]["content"]
        return type(token) is int and entry["token_id"] == token
    except RemoteUnavailableError:
        raise
    except (Glm4Error, KeyError, TypeError, ValueError):
        return False


def _probe(server: Server, options: RemoteOptions, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first choice of a one-token answer, streamed like every other request's."""
    exchange = Exchange(server, options.first_token_timeout)
    try:
        exchange.send("POST", path, body)
        for data in exchange.events():
            if data.startswith(b"{"):
                chunk = json.loads(data)
                return _first_choice(server, chunk)
    except (OSError, HTTPException) as error:
        raise server.broken(error) from None
    except (ValueError, RecursionError):
        raise RemoteError(f"{server.name} sent an event that is not JSON") from None
    finally:
        exchange.close()
    raise RemoteUnavailableError(f"{server.name} hung up without an answer")


def _first_choice(server: Server, chunk: Any) -> Mapping[str, Any]:
    if isinstance(chunk, Mapping) and chunk.get("error"):
        raise server.refusal_event(chunk)
    choices = chunk.get("choices") if isinstance(chunk, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise RemoteError(f"{server.name} sent an event without choices")
    return choices[0]


def _tokenized(server: Server, options: RemoteOptions, model: str) -> Any:
    """The server's ids for the probe text, from /tokenize; None if it has no such route."""
    body = {"model": model, "prompt": PROBE, "add_special_tokens": False}
    answer = _asked(server, options, "/tokenize", body)
    return answer.get("tokens") if isinstance(answer, Mapping) else None


def _asked(server: Server, options: RemoteOptions, path: str, body: Mapping[str, Any]) -> Any:
    """The response of a route that only some servers have; None if there is no response."""
    try:
        return server.json("POST", path, body, timeout=options.first_token_timeout)
    except RemoteUnavailableError:
        raise
    except Glm4Error:
        return None


def _compare(server: Server, files: ModelFiles, *theirs: Any) -> None:
    """Compare our ids for the probe text with each list the server gave; it may prepend some."""
    ours = files.tokenizer.encode(PROBE)
    given = [ids for ids in theirs if isinstance(ids, list) and ids]
    if not given:
        raise RemoteError(
            f"{server.name} does not say how it cuts texts into tokens, so its tokenizer cannot be compared with that"
            " of the model here; it must answer /tokenize, or give prompt_token_ids with return_token_ids"
        )
    if any(ids[-len(ours) :] != ours for ids in given):
        raise _differs(server, files)


def _compare_specials(server: Server, options: RemoteOptions, files: ModelFiles, model: str) -> None:
    """Compare special tokens if the server can decode ids: role tags and stop ids must have the same numbers."""
    tokens = sorted(files.tokenizer.added_tokens.values(), key=lambda token: token.id)[:_MAX_SPECIALS]
    answer = _asked(server, options, "/detokenize", {"model": model, "tokens": [token.id for token in tokens]})
    spelled = answer.get("prompt") if isinstance(answer, Mapping) else None
    ours = "".join(token.content for token in tokens)
    if isinstance(spelled, str) and "".join(spelled.split()) != "".join(ours.split()):
        raise _differs(server, files)


def _differs(server: Server, files: ModelFiles) -> RemoteError:
    return RemoteError(
        f"the tokenizer of {server.name} is not that of {files.name}: it has other ids for the same text. Name the"
        " model that the server runs, or give its folder"
    )
