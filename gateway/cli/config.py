"""Which gateway a command talks to, with which key: flags, then ``RGRID_*``, then the active context.

Contexts live in ``$XDG_CONFIG_HOME/rgrid/config.toml`` (``~/.config`` by default); only its owner can read it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.cli.failures import Failed

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where ``rgrid up`` listens unless it is told otherwise."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEY = re.compile(r"[!-~]{1,512}")
_PROJECT = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Context:
    """A gateway that the user has logged in to."""

    url: str
    key: str | None = field(repr=False)
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Contexts:
    """The saved contexts by name; ``active`` names the one in use, if any."""

    active: str | None = None
    saved: Mapping[str, Context] = field(default_factory=dict)

    @property
    def current(self) -> Context | None:
        return self.saved.get(self.active) if self.active else None

    def of_url(self, url: str) -> Context | None:
        """The context of that gateway, the active one before others."""
        if self.current is not None and self.current.url == url:
            return self.current
        return next((context for context in self.saved.values() if context.url == url), None)

    def adding(self, name: str, context: Context) -> Contexts:
        return Contexts(name, {**self.saved, name: context})

    def without(self, name: str) -> Contexts:
        saved = {other: context for other, context in self.saved.items() if other != name}
        return Contexts(None if self.active == name else self.active, saved)

    def using(self, name: str) -> Contexts:
        return replace(self, active=name)


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line itself said; None is "not given"."""

    url: str | None = None
    key: str | None = field(default=None, repr=False)
    project: str | None = None

    def over(self, other: Flags) -> Flags:
        return Flags(self.url or other.url, self.key or other.key, self.project or other.project)


def from_environment(environment: Mapping[str, str]) -> Flags:
    """An empty variable counts as one that is not set."""
    return Flags(
        environment.get("RGRID_URL") or None,
        environment.get("RGRID_API_KEY") or None,
        environment.get("RGRID_PROJECT") or None,
    )


def target(flags: Flags, environment: Mapping[str, str]) -> Context:
    """The gateway to call. A saved key goes to the gateway that it was saved for, and to no other."""
    told = flags.over(from_environment(environment))
    contexts = Contexts() if told.url and told.key else read(environment)
    url = told.url or (contexts.current.url if contexts.current else DEFAULT_URL)
    url = checked_url(url)
    saved = contexts.of_url(url) or Context(url, None)
    key, project = told.key or saved.key, told.project or saved.project
    if project is not None and not _PROJECT.fullmatch(project):
        raise Failed("a project is named by visible ASCII characters, for instance `acme/default`")
    return Context(url, None if key is None else checked_key(key), project)


def checked_url(text: str) -> str:
    """The base URL without a slash at its end; raises ``Failed`` for what is none."""
    wrong = Failed(f"{text!r} is not a gateway's URL: it reads like http://host:8080")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise wrong from None
    if url.scheme not in ("http", "https") or not host or port == 0:
        raise wrong
    if url.username or url.query or url.fragment:
        raise wrong
    if not text.isascii() or not text.isprintable() or set(text) & set(' <>"{}|\\^`%'):
        raise wrong
    return text.rstrip("/")


def checked_key(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise Failed("this is not an API key: a key is one word of visible ASCII characters")
    return text


def path(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(base):  # the specification says to ignore a relative one  # noqa: PTH117
        return Path(base) / "rgrid" / "config.toml"
    try:
        return Path.home() / ".config" / "rgrid" / "config.toml"
    except RuntimeError:
        raise Failed("no home directory: set XDG_CONFIG_HOME, or RGRID_URL and RGRID_API_KEY") from None


def read(environment: Mapping[str, str]) -> Contexts:
    """The saved contexts; none if the file is missing."""
    import tomllib

    file = path(environment)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # bad UTF-8 or TOML
        raise Failed(f"{file} is not valid: {error}. Mend it, or remove it and log in again") from None
    try:
        return _parsed(document)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Failed(f"{file} is not a list of contexts: remove it and log in again") from None


def write(contexts: Contexts, environment: Mapping[str, str]) -> Path:
    """Replace the file in one step, so that no reader sees half of it; only its owner may read it."""
    import tempfile

    file = path(environment).resolve()  # through a link, as people keep such files elsewhere
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".config-")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(_as_toml(contexts))
            opened.flush()
            os.fsync(opened.fileno())
        Path(temporary).replace(file)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise Failed(f"cannot write {file}: {error.strerror}") from None
    return file


def _parsed(document: dict[str, Any]) -> Contexts:
    saved = {}
    for name, entry in document.get("contexts", {}).items():
        context = Context(entry["url"], entry.get("key"), entry.get("project"))
        if not NAME.fullmatch(name) or not isinstance(context.url, str):
            raise ValueError(name)
        if not isinstance(context.key, str | None) or not isinstance(context.project, str | None):
            raise TypeError(name)
        saved[name] = context
    active = document.get("active")
    return Contexts(active if active in saved else None, saved)


def _as_toml(contexts: Contexts) -> str:
    # Names, URLs, keys and projects are visible ASCII, for which a JSON string is a TOML string.
    lines = [f"active = {json.dumps(contexts.active)}"] if contexts.active else []
    for name, context in contexts.saved.items():
        lines += ["", f"[contexts.{json.dumps(name)}]", f"url = {json.dumps(context.url)}"]
        if context.key is not None:
            lines.append(f"key = {json.dumps(context.key)}")
        if context.project is not None:
            lines.append(f"project = {json.dumps(context.project)}")
    return "\n".join(lines).lstrip() + "\n"
