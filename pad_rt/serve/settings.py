"""How a server is set up: each setting a field, a flag of `pad serve` and an environment variable."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from pad_runtime.devices.choice import DEVICES
from pad_runtime.errors import OptionError

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|\*|null", re.ASCII)
_VISIBLE = re.compile(r"[!-+\--~]+")  # no comma, which separates keys in the environment variable
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class _Kind:
    """What values a setting takes: how their text is read (ValueError: not at all), and which are in range."""

    expected: str
    read: Callable[[str], Any]
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Flag:
    """A setting as a flag of `pad serve`.

    Attributes:
        name: such as "max-waiting": the flag --max-waiting, and the environment variable PAD_MAX_WAITING.
        kind: what values it takes.
        metavar: what its value is called in the help.
        help: what it is for.
        is_list: it may be given several times; in the environment variable, commas separate the values.
        is_switch: the flag takes no value.
    """

    name: str
    kind: _Kind
    metavar: str
    help: str
    is_list: bool = False
    is_switch: bool = False

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"PAD_{self.name.replace('-', '_').upper()}"

    def holds(self, value: Any) -> bool:
        """Whether a field may have this value."""
        if self.is_list:
            return isinstance(value, tuple) and all(map(self._holds_one, value))
        return self._holds_one(value)

    def read(self, source: str, text: str) -> Any:
        """The value, or one of a list, of a text from the command line or the environment, as `source` says."""
        try:
            value = self.kind.read(text)
        except (ValueError, OverflowError):
            value = None
        if not self._holds_one(value):
            raise OptionError(source if self.is_secret else f"{source} {text!r}", expected=self.kind.expected)
        return value

    @property
    def is_secret(self) -> bool:
        """Whether its values are never shown."""
        return self.kind is _KEY

    def _holds_one(self, value: Any) -> bool:
        try:
            return isinstance(value, bool) == self.is_switch and self.kind.holds(value)
        except (TypeError, OverflowError):
            return False


def _read_switch(text: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise ValueError(text)
    return text.lower() in _YES


_TEXT = _Kind("a text", str, lambda text: bool(text) and text.isprintable())
_HOST = _Kind("an address, or a name in ASCII", str, lambda host: bool(host) and host.isascii() and host.isprintable())
_FILE = _Kind("a path", Path, lambda path: isinstance(path, Path))
_PORT = _Kind("a port, 0 to 65535 (0: any that is free)", int, lambda port: 0 <= port <= 65535)
_COUNT = _Kind("an integer >= 1", int, lambda count: isinstance(count, int) and count >= 1)
_SECONDS = _Kind("seconds, above 0", float, lambda seconds: 0 < seconds < math.inf)
_MIB = _Kind("MiB, above 0", float, lambda mib: 0 < mib < math.inf)
_MIB_OR_NONE = _Kind("MiB, 0 or more", float, lambda mib: 0 <= mib < math.inf)
_SWITCH = _Kind("1 or 0", _read_switch, lambda on: isinstance(on, bool))
_DEVICE = _Kind(f"one of {', '.join(DEVICES)}", str, lambda device: device in DEVICES)
_KEY = _Kind("a key of visible ASCII characters, no comma", str, lambda key: _VISIBLE.fullmatch(key) is not None)
_ORIGIN_KIND = _Kind(
    "an origin such as https://app.example.org, or * for any",
    lambda text: text.lower().rstrip("/"),
    lambda origin: _ORIGIN.fullmatch(origin) is not None,
)


def _flag(name: str, kind: _Kind, metavar: str, help: str, *, is_list: bool = False) -> dict[str, Flag]:
    """The metadata of a field."""
    return {"flag": Flag(name, kind, metavar, help, is_list=is_list, is_switch=kind is _SWITCH)}


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server is set up.

    Args:
        bundles: folders that pad-export wrote, or names of repositories on the hub.
        name: what clients call the bundle, if there is a single one; None: as its folder.
        people: the file of named people.
        tastes: files of saved tastes; each is served as the person of its name.
        learn: where people's choices are kept, a file or the URL of a database; None: nothing is learned.
        host, port: where the server listens; port 0 takes any that is free.
        api_keys: a request needs one of them; none: no key is asked for.
        cors_origins: origins of other pages that may call; "*" is any.
        max_body_mib: size of a request's body.
        max_waiting, max_cache_mib, keep_mib: as of `Generator`.
        queue_timeout: seconds that a request may wait for a place in the batch.
        request_timeout: seconds that a reply may take in all.
        client_timeout: seconds in which a request must arrive, head and body, in which a client must take what was
            sent, and for which a connection may be idle.
        drain_timeout: seconds that running replies have to end once the server is told to.
        keepalive: seconds between comments in a stream that has nothing else to say.
        max_new_tokens: cap on what a request may ask for, and what it gets if it does not say.
        log_prompts: log prompts, replies and tracebacks, too.
        no_page: do not serve the page.
        device, threads: as of `Generator.load`.

    Raises:
        OptionError: a value outside its range.
    """

    bundles: tuple[str | Path, ...] = ()
    name: str | None = field(
        default=None, metadata=_flag("name", _TEXT, "NAME", "what clients call a single bundle (default: its folder)")
    )
    people: Path | None = field(default=None, metadata=_flag("people", _FILE, "FILE", "JSON file of named people"))
    tastes: tuple[Path, ...] = field(
        default=(),
        metadata=_flag(
            "taste", _FILE, "FILE", "file of pad taste, a person by its name; may be given several times", is_list=True
        ),
    )
    learn: str | None = field(
        default=None,
        metadata=_flag("learn", _TEXT, "FILE", "learn what people like, and keep it in this file, or a database's URL"),
    )
    host: str = field(default="127.0.0.1", metadata=_flag("host", _HOST, "HOST", "address to listen at"))
    port: int = field(default=8080, metadata=_flag("port", _PORT, "PORT", "port to listen at; 0 takes a free one"))
    api_keys: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=_flag(
            "api-key", _KEY, "KEY", "a key that clients must send; may be given several times", is_list=True
        ),
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=_flag(
            "cors-origin", _ORIGIN_KIND, "ORIGIN", "a web page that may call; may be given several times", is_list=True
        ),
    )
    max_body_mib: float = field(default=4.0, metadata=_flag("max-body-mib", _MIB, "MIB", "largest body of a request"))
    max_waiting: int = field(
        default=256, metadata=_flag("max-waiting", _COUNT, "N", "requests that may wait; further ones get 429")
    )
    max_cache_mib: float | None = field(
        default=None, metadata=_flag("max-cache-mib", _MIB, "MIB", "memory for KV caches of running requests")
    )
    keep_mib: float = field(
        default=256.0, metadata=_flag("keep-mib", _MIB_OR_NONE, "MIB", "memory for KV caches of replies that ended")
    )
    queue_timeout: float = field(
        default=60.0, metadata=_flag("queue-timeout", _SECONDS, "S", "longest wait for a place in the batch; then 503")
    )
    request_timeout: float = field(
        default=600.0, metadata=_flag("request-timeout", _SECONDS, "S", "longest time for a reply")
    )
    client_timeout: float = field(
        default=30.0,
        metadata=_flag("client-timeout", _SECONDS, "S", "longest wait for a client that sends or reads"),
    )
    drain_timeout: float = field(
        default=30.0, metadata=_flag("drain-timeout", _SECONDS, "S", "time for running replies to end at SIGTERM")
    )
    keepalive: float = field(
        default=15.0, metadata=_flag("keepalive", _SECONDS, "S", "time between comments in a stream that is silent")
    )
    max_new_tokens: int = field(default=1024, metadata=_flag("max-new-tokens", _COUNT, "N", "most tokens of a reply"))
    log_prompts: bool = field(
        default=False, metadata=_flag("log-prompts", _SWITCH, "", "log prompts, replies and tracebacks, too")
    )
    no_page: bool = field(default=False, metadata=_flag("no-page", _SWITCH, "", "serve no page at /"))
    device: str = field(default="auto", metadata=_flag("device", _DEVICE, "DEVICE", ", ".join(DEVICES)))
    threads: int | None = field(
        default=None, metadata=_flag("threads", _COUNT, "N", "CPU threads of each bundle (default: the physical cores)")
    )

    def __post_init__(self) -> None:
        for setting in _settings():
            flag, value = setting.metadata["flag"], getattr(self, setting.name)
            if value != setting.default and not flag.holds(value):
                shown = setting.name if flag.is_secret else f"{setting.name}={value!r}"
                raise OptionError(shown, expected=flag.kind.expected)
        if self.name is not None and len(self.bundles) != 1:
            raise OptionError(f"--name for {len(self.bundles)} bundles", expected="a single bundle")

    @classmethod
    def read(
        cls, bundles: Sequence[str | Path], flags: Mapping[str, Any], environment: Mapping[str, str]
    ) -> ServeSettings:
        """The settings of a command line and an environment; a flag goes before its variable.

        Args:
            bundles: folders, or names on the hub.
            flags: by field, the text that was given, True for a switch, or a list of texts; those not given are absent.
            environment: environment variables; an empty one counts as absent.

        Raises:
            OptionError: a value that cannot be read or is outside its range.
        """
        read: dict[str, Any] = {}
        for setting in _settings():
            flag: Flag = setting.metadata["flag"]
            text = environment.get(flag.variable, "")
            if setting.name in flags:
                source, given = f"--{flag.name}", flags[setting.name]
            elif text:
                source = flag.variable
                given = [each.strip() for each in text.split(",") if each.strip()] if flag.is_list else text
            else:
                continue
            if flag.is_list:
                read[setting.name] = tuple(flag.read(source, each) for each in given)
            else:
                read[setting.name] = given if given is True else flag.read(source, given)
        return cls(bundles=tuple(bundles), **read)


def _settings() -> list[Field[Any]]:
    return [setting for setting in fields(ServeSettings) if "flag" in setting.metadata]


def flags() -> dict[str, Flag]:
    """The flags of `pad serve`, by field."""
    return {setting.name: setting.metadata["flag"] for setting in _settings()}
