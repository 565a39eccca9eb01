"""`ImageTool`: makes pictures from descriptions; GLM-4's `cogview`, and a function for other dialects.

Any service with OpenAI's `/v1/images/generations` (CogView's too) makes the picture. It is taken from the answer, or
fetched from the address in the answer: by the guarded fetcher, unless that is the service itself. What is no PNG, JPEG,
WebP or GIF that can be decoded (in the helper process for pictures) is refused.

Not covered: what a picture shows; what the service learns from the description.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Any

from glm4.agent.arguments import ArgumentsError, read_object
from glm4.agent.files import FileStore
from glm4.agent.tool import Function, Invocation, Tool, ToolContext, ToolResult
from glm4.agent.tools.endpoint import Endpoint, fetch_problem
from glm4.agent.tools.waiting import Job, wait_for
from glm4.errors import InvalidRequestError
from glm4.multimodal.addresses import AddressError, parse_url
from glm4.multimodal.fetch import Fetcher, FetchPolicy
from glm4.multimodal.image import ImageDecoder

URL, MODEL, KEY = "GLM4_IMAGE_URL", "GLM4_IMAGE_MODEL", "GLM4_IMAGE_KEY"
"""Environment variables with the settings that are not given otherwise."""

_PATH = "/images/generations"
_MADE = "CogView 已经生成并向用户展示了生成的图片。"  # as GLM-4 was trained
_MADE_ELSEWHERE = "The picture was made and is shown to the user. Do not repeat its address or data."
_MAX_PROMPT = 4_000
_MAX_NBYTES = 32 << 20
_DECODED_SIDE = 64  # pixels; only whether it can be decoded counts
_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"))


class ImageTool(Tool):
    """Makes pictures.

    Args:
        url: of the service: `https://host/v1`, or the whole address with `/images/generations`.
        model: its name for the model; None: the service's own choice.
        key: sent as a bearer token; in no error.
        size: such as "1024x1024"; None: the service's own choice.
        policy: for pictures that the service only gives the address of.

    Raises:
        InvalidRequestError: there is no address of a service.
    """

    name = "image"
    builtin = "cogview"
    timeout = 180.0

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        *,
        size: str | None = None,
        policy: FetchPolicy = FetchPolicy(),  # noqa: B008  # it is frozen
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        url, key = url or environment.get(URL), key or environment.get(KEY)
        if not url:
            raise InvalidRequestError(
                f"the image tool needs the address of a service with /v1/images/generations; set {URL}", param="tools"
            )
        url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        self._endpoint = Endpoint(
            url if url.endswith(_PATH) else url + _PATH, name="the image service", headers=headers,
            advice=f"check {URL}, {MODEL} and {KEY}", seconds=self.timeout - 10, max_nbytes=2 * _MAX_NBYTES,
        )  # fmt: skip
        given = {"model": model or environment.get(MODEL), "size": size}
        self._fields = {name: value for name, value in given.items() if value}
        self._fetcher = Fetcher(policy)
        self._decoder = ImageDecoder(_DECODED_SIDE)
        self.functions = (_FUNCTION,)

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """See `Tool.run`; the picture goes to `context.files`, the model reads that there is one."""
        prompt = _prompt(invocation)
        if not prompt:
            return ToolResult.error("The picture was not made: describe it in words first.")
        if len(prompt) > _MAX_PROMPT:
            return ToolResult.error(f"The picture was not made: describe it in at most {_MAX_PROMPT} characters.")
        if context.files is None:
            return ToolResult.error("The picture was not made: this conversation keeps no files. Tell the user so.")
        job = Job(lambda: self._make(prompt))
        wait_for([job], context)
        if job.result is None:
            return ToolResult.error(f"The picture was not made: {job.problem()}. Tell the user so.")
        return self._keep(*job.result, prompt, context, context.files, raw=invocation.raw)

    def about(self, invocation: Invocation) -> str:
        """See `Tool.about`."""
        return f"make a picture: {_prompt(invocation)[:200]}"

    def close(self) -> None:
        """See `Tool.close`."""
        self._decoder.close()

    def _make(self, prompt: str) -> tuple[bytes, str]:
        """The picture, and the ending of its name."""
        answer = self._endpoint.ask(body={**self._fields, "prompt": prompt, "n": 1})
        data = self._picture(_first(answer))
        ending = next((name for mark, name in _SIGNATURES if data.startswith(mark)), None)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            ending = "webp"
        if ending is None:
            raise self._endpoint.error("what it sent is no PNG, JPEG, WebP or GIF")
        self._decoder.decode(data)
        return data, ending

    def _picture(self, item: Mapping[str, Any]) -> bytes:
        encoded, url = item.get("b64_json"), item.get("url")
        if isinstance(encoded, str) and encoded:
            try:
                return base64.b64decode(encoded.partition("base64,")[2] or encoded, validate=True)
            except (binascii.Error, ValueError):
                raise self._endpoint.error("the picture in its answer is not base64") from None
        if not isinstance(url, str):
            raise self._endpoint.error("its answer has no picture")
        try:
            target, service = parse_url(url), self._endpoint.target
        except AddressError as error:
            raise self._endpoint.error(f"the address of the picture is refused: {error}") from None
        own = (target.scheme, target.host, target.port) == (service.scheme, service.host, service.port)
        try:
            return (self._endpoint.fetcher if own else self._fetcher).fetch(url).data
        except InvalidRequestError as error:
            raise self._endpoint.error(f"the picture cannot be fetched: {fetch_problem(error)}") from None

    def _keep(
        self, data: bytes, ending: str, prompt: str, context: ToolContext, files: FileStore, *, raw: bool
    ) -> ToolResult:
        context.file(files.put(f"picture.{ending}", data, alt=prompt))
        return ToolResult.of(_MADE if raw else _MADE_ELSEWHERE, "cogview_result")


def _prompt(invocation: Invocation) -> str:
    if invocation.raw:
        return invocation.arguments.strip()
    try:
        prompt = read_object(invocation.arguments).get("prompt")
    except ArgumentsError:
        return ""
    return prompt.strip() if isinstance(prompt, str) else ""


def _first(answer: Any) -> Mapping[str, Any]:
    data = answer.get("data") if isinstance(answer, Mapping) else None
    item = data[0] if isinstance(data, list) and data else None
    return item if isinstance(item, Mapping) else {}


_FUNCTION = Function(
    "generate_image",
    "Make a picture from a description and show it to the user.",
    {
        "type": "object",
        "properties": {
            "prompt": {
                "type": "string",
                "description": "what the picture shows, in English and in detail, about 100 words",
            }
        },
        "required": ["prompt"],
        "additionalProperties": False,
    },
)
