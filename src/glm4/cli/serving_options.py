"""Options of the commands that serve: models, access, limits, logs. Each group makes settings of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.parameters import Option, UsageError

if TYPE_CHECKING:
    from glm4.server.config import ModelSpec

ACCESS, LIMITS, LOG = "Access", "Limits", "Logging and metrics"

MaxNumSeqs = Annotated[
    int, Option(min=1, max=4096, metavar="N", panel=options.ENGINE, help="Requests answered at once.")
]
LogLevel = Annotated[str, Option(metavar="LEVEL", panel=LOG, help="debug, info, warning or error.")]


@dataclass(frozen=True)
class ServedModels:
    """Which models to serve, and the memory they may take."""

    model: Annotated[
        list[str] | None,
        Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="What to serve, as in `glm4 chat -m`; NAME= is what clients call it. May be repeated. "
            "The default is GLM4_MODEL, else starter.",
        ),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="Further names of the first model; * answers to any. May be repeated."),
    ] = None
    lora: Annotated[
        list[str] | None,
        Option(
            "--lora",
            "--adapter",
            metavar="NAME=FOLDER",
            help="An adapter of the first model: LoRA or P-Tuning v2, in PEFT's format. May be repeated.",
        ),
    ] = None
    max_num_seqs: MaxNumSeqs = 64
    kv_memory: Annotated[
        float | None,
        Option(
            min=0.001,
            max=1e6,
            metavar="GB",
            panel=options.ENGINE,
            help="Memory for the KV cache. The default is what is needed, up to 60 % of what is free.",
        ),
    ] = None
    picture_memory: Annotated[
        float | None,
        Option(
            min=0,
            max=1e6,
            metavar="GB",
            panel=options.ENGINE,
            help="Memory for what the model has seen in pictures, so that it need not look again. The default is 0.27.",
        ),
    ] = None
    allow_many_images: options.AllowManyImages = False
    media_domains: options.MediaDomains = None

    def specs(self, first: str | None, engine: options.EngineOptions) -> tuple[ModelSpec, ...]:
        """What to load. Imports the engine, as `options.import_engine` does, and raises what that raises.

        Args:
            first: a model before those of `--model`.

        Raises:
            UsageError: `--lora` is not NAME=FOLDER.
        """
        settings: dict[str, Any] = {
            "max_num_seqs": self.max_num_seqs,
            "allow_many_images": self.allow_many_images,
            "media_domains": self.media_domains,
        }
        for name, gigabytes in (("kv_cache_memory", self.kv_memory), ("picture_cache_memory", self.picture_memory)):
            if gigabytes is not None:
                settings[name] = int(gigabytes * 1e9)
        settings |= engine.for_llm()
        options.import_engine(**settings)
        settings |= options.adapter_options(settings, len(self.lora or []))
        models = [*([first] if first else []), *(self.model or [])]
        # The variable does not hold a list: a folder's name may contain spaces.
        return self._specs(models or [os.environ.get("GLM4_MODEL") or "starter"], settings)

    def _specs(self, models: list[str], settings: dict[str, Any]) -> tuple[ModelSpec, ...]:
        from glm4.server.config import ModelSpec

        specs, names = [], self.served_model_name or []
        for index, text in enumerate(models):
            name, separator, source = text.partition("=")
            if not separator or "/" in name:
                name, source = "", text
            own = [name or Path(source).name or source]
            if index == 0:
                own = [*names, *own] if names and not name else [*own, *names]
            adapters = dict(_pair(adapter) for adapter in self.lora or []) if index == 0 else {}
            if adapters:
                options.check_adapters(source, adapters.values(), settings)
            specs.append(ModelSpec(source, tuple(dict.fromkeys(own)), settings, adapters))
        return tuple(specs)


@dataclass(frozen=True)
class AccessOptions:
    """Who may come in."""

    host: Annotated[str, Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1"
    insecure: Annotated[bool, Option("--insecure", panel=ACCESS, help="Let others in without a key.")] = False
    allow_adapter_loading: Annotated[
        bool,
        Option("--allow-adapter-loading", panel=ACCESS, help="Let clients load adapters from this machine's folders."),
    ] = False
    parse_special: Annotated[
        bool,
        Option(
            "--parse-special", panel=ACCESS, help="Read <|user|> and the like in raw prompts (not chats) as tokens."
        ),
    ] = False
    api_key: Annotated[
        list[str] | None,
        Option(
            envvar="GLM4_API_KEY",
            metavar="KEY",
            panel=ACCESS,
            help="A key that clients must send. Other users of this machine can see it; a file is safer.",
        ),
    ] = None
    api_key_file: Annotated[Path | None, Option(metavar="FILE", panel=ACCESS, help="Keys, one per line.")] = None
    allowed_host: Annotated[
        list[str] | None, Option(metavar="NAME", panel=ACCESS, help="Accept this Host header besides localhost.")
    ] = None
    allowed_origin: Annotated[
        list[str] | None, Option(metavar="ORIGIN", panel=ACCESS, help="Let web pages of this origin call (CORS).")
    ] = None

    def settings(self) -> dict[str, Any]:
        """Fields of `ServerConfig`.

        Raises:
            UsageError: there is no key where one was promised.
        """
        return {
            "host": self.host,
            "insecure": self.insecure,
            "allow_adapter_loading": self.allow_adapter_loading,
            "parse_special": self.parse_special,
            "api_keys": read_keys(self.api_key or [], self.api_key_file),
            "allowed_hosts": tuple(self.allowed_host or ()),
            "allowed_origins": tuple(self.allowed_origin or ()),
        }


@dataclass(frozen=True)
class LimitOptions:
    """How much of everything."""

    store_path: Annotated[
        Path | None,
        Option("--store", metavar="FILE", help="Keep responses (/v1/responses) in this SQLite file; else in memory."),
    ] = None
    max_queue: Annotated[
        int, Option(min=0, metavar="N", panel=LIMITS, help="Requests that may wait; more get 429.")
    ] = 256
    queue_timeout: Annotated[
        float, Option(min=0.1, metavar="SECONDS", panel=LIMITS, help="Longest wait for a place.")
    ] = 300.0
    request_timeout: Annotated[
        float | None, Option(min=0.1, metavar="SECONDS", panel=LIMITS, help="Longest answer.")
    ] = None
    max_connections: Annotated[
        int, Option(min=1, max=1_000_000, metavar="N", panel=LIMITS, help="Open connections; idle ones give way.")
    ] = 1000
    shutdown_timeout: Annotated[
        float, Option(min=1, max=86400, metavar="SECONDS", panel=LIMITS, help="Time to finish after SIGTERM.")
    ] = 30.0
    max_memory: Annotated[
        float | None,
        Option(
            min=0.1,
            max=1e6,
            metavar="GB",
            panel=LIMITS,
            help="Memory of the whole server. The default is what the machine or container has.",
        ),
    ] = None
    max_body_mb: Annotated[int, Option(min=1, metavar="MB", panel=LIMITS, help="Longest request body.")] = 48
    store_max_mb: Annotated[int, Option(min=1, metavar="MB", panel=LIMITS, help="Responses kept, in all.")] = 256
    store_max_days: Annotated[
        float, Option(min=0.001, metavar="DAYS", panel=LIMITS, help="How long a response is kept unused.")
    ] = 30.0

    def settings(self) -> dict[str, Any]:
        """Fields of `ServerConfig`."""
        return {
            "store_path": self.store_path,
            "max_queue": self.max_queue,
            "queue_timeout": self.queue_timeout,
            "request_timeout": self.request_timeout,
            "max_connections": self.max_connections,
            "shutdown_timeout": self.shutdown_timeout,
            "max_memory": None if self.max_memory is None else int(self.max_memory * 1e9),
            "max_body_bytes": self.max_body_mb << 20,
            "store_max_bytes": self.store_max_mb << 20,
            "store_max_age": self.store_max_days * 86400,
        }


@dataclass(frozen=True)
class LogOptions:
    """What the server tells."""

    log_prompts: Annotated[bool, Option("--log-prompts", panel=LOG, help="Write prompts into the log.")] = False
    metrics_prefix: Annotated[
        str, Option(metavar="WORD", panel=LOG, help="Prefix of metric names; vllm fits its dashboards.")
    ] = "glm4"
    log_format: Annotated[str, Option(metavar="FORMAT", panel=LOG, help="text or json (one object per line).")] = "text"
    log_level: LogLevel = "info"
    training: Annotated[
        Path | None,
        Option(metavar="FOLDER", panel=LOG, help="Show runs of `glm4 finetune` in the web page, at /training."),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Fields of `ServerConfig`.

        Raises:
            UsageError: the folder of `--training` is not there.
        """
        if self.training is not None and not self.training.expanduser().is_dir():
            raise UsageError(f"--training {os.fspath(self.training)} is not a folder")
        training = None if self.training is None else self.training.expanduser()
        return {"log_prompts": self.log_prompts, "metrics_prefix": self.metrics_prefix, "training": training}

    def set_up(self) -> None:
        """Send the log to standard error; see `set_up_logging`."""
        from glm4.cli.server_logging import set_up_logging

        set_up_logging(self.log_format, self.log_level)


def _pair(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (separator and name and folder):
        raise UsageError(f"--lora takes NAME=FOLDER, not {text!r}")
    return name, Path(folder)


def read_keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """The API keys of a command line: separated by commas, repeated, and one per line of a file (`-`: standard input).

    Raises:
        UsageError: there is none where one was promised, or the file cannot be read.
    """
    keys = [key for text in given for key in text.split(",") if key]
    if given and not keys:
        raise UsageError("--api-key is empty; without it the server is open to everybody on this machine")
    if file is not None:
        from glm4.cli.console import STREAM, read_stdin
        from glm4.system.text_encoding import TextEncodingError, read_text

        try:
            lines = (read_stdin() if os.fspath(file) == STREAM else read_text(file)).splitlines()
            mode = 0 if os.fspath(file) == STREAM else file.stat().st_mode
        except OSError as error:
            raise UsageError(f"--api-key-file {os.fspath(file)} cannot be read: {error}") from None
        except TextEncodingError as error:
            raise UsageError(f"--api-key-file {os.fspath(file)} {error}") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"--api-key-file {os.fspath(file)} has no key in it")
        if os.name == "posix" and mode & 0o077:
            from glm4.cli.console import notice

            notice(f"{file} can be read by other users of this machine; close it to them: chmod 600 {file}")
        keys += found
    return tuple(dict.fromkeys(keys))
