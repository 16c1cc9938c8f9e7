"""The settings of callers, checked before anything is sent."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import math
import secrets
from dataclasses import dataclass
from typing import Callable, Optional, Union

from .errors import ConfigError

Duration = Union[float, int, datetime.timedelta]
"""Seconds, or a timedelta."""

DEFAULT_KIND = "default"
TERM = 15.0
"""How long a leadership lasts unless it is extended, in seconds, if not said otherwise."""
GRACE = 5.0
"""How long work may go on after the loss was reported to it, in seconds, if not said otherwise."""
MARGIN = 1.0
"""The longest margin, in seconds, unless it is asked for."""
NAME_BYTES = 256
VALUE_BYTES = 1024
MILLIS = 2**31 - 1
FOR_EVER = 1e9
"""What is as good as for ever, in seconds."""


def seconds(duration: Duration, what: str) -> float:
    """A duration in seconds. Raises `ConfigError` if it is none."""
    if isinstance(duration, datetime.timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        try:
            value = float(duration)
        except OverflowError:
            value = math.inf if duration > 0 else -math.inf
    else:
        raise ConfigError(f"{what} is {duration!r}: give seconds or a timedelta")
    if math.isnan(value) or value < 0:
        raise ConfigError(f"{what} is {duration!r}: it has to be 0 or more")
    return value


def limit(duration: Optional[Duration], what: str) -> Optional[float]:
    """A duration in seconds; None if there is no limit. Raises `ConfigError` if it is none."""
    value = None if duration is None else seconds(duration, what)
    return None if value is None or value > FOR_EVER else value


def millis(value: float, what: str) -> int:
    """Milliseconds for the wire: rounded down, so that no term is longer than requested."""
    if value * 1000 > MILLIS:
        raise ConfigError(f"{what} is too long: {value} s; at most {MILLIS // 1000} s")
    # A thousandth of a millisecond for what floats cannot represent: 1.001 s are 1001 ms.
    return int(value * 1000 + 0.001)


def name(value: str, what: str, slashes: bool = True, needed: bool = True) -> str:
    """A name, as agents take it. Raises `ConfigError` if it is none."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} is {value!r}: give a string")
    if needed and not value:
        raise ConfigError(f"{what} is empty: give 1 to {NAME_BYTES} bytes of UTF-8")
    size = _size(value, what)
    if size > NAME_BYTES:
        raise ConfigError(f"{what} has {size} bytes: at most {NAME_BYTES}")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise ConfigError(f"{what} is {value!r}: it must not have control characters")
    if not slashes and "/" in value:
        raise ConfigError(f'{what} is {value!r}: it must not have "/"')
    return value


def _size(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is {text!r}: it has characters that UTF-8 cannot have") from None


def kind_of(kind: str) -> str:
    """The name of a kind, checked."""
    return name(kind, "the kind", slashes=False, needed=False) or DEFAULT_KIND


def election_of(election: str, kind: str) -> tuple[str, str]:
    """The names of an election and its kind, checked."""
    name(election, "the election", slashes=False)
    return election, kind_of(kind)


def value_of(value: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"the value is {value!r}: give a string")
    size = _size(value, "the value")
    if size > VALUE_BYTES:
        raise ConfigError(f"the value has {size} bytes: at most {VALUE_BYTES}")
    return value


def token_of(token: int, needed: bool = True) -> int:
    """A fencing token, checked. Raises `ConfigError` if it is none."""
    if not isinstance(token, int) or isinstance(token, bool) or not (1 if needed else 0) <= token < 2**53:
        raise ConfigError(f"the token is {token!r}: a fencing token is a number from 1 to 2**53 - 1")
    return token


def term_of(term: Duration) -> float:
    value = seconds(term, "the term")
    millis(value, "the term")
    if value < 1:
        raise ConfigError(f"the term is {value} s: at least 1 s")
    return value


def function_of(function: Optional[Callable[..., object]], what: str) -> None:
    if function is None:
        return
    if not callable(function):
        raise ConfigError(f"{what} is {function!r}: give a function")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{what} is a coroutine function: give a plain one, a thread of the library calls it")


@dataclass(frozen=True)
class Settings:
    """How a candidate leads an election."""

    kind: str
    election: str
    candidate: str
    term: float
    value: str
    wait: Optional[float]
    grace: float
    margin: float

    @staticmethod
    def of(
        election: str,
        kind: str,
        candidate: str,
        term: Duration,
        value: str,
        wait: Optional[Duration],
        grace: Duration,
        margin: Optional[Duration],
    ) -> Settings:
        """Raises `ConfigError` for what no agent would take."""
        election, kind = election_of(election, kind)
        length = term_of(term)
        before = min(MARGIN, length / 10) if margin is None else seconds(margin, "the margin")
        if before > length / 2:
            raise ConfigError(f"the margin is {before} s: at most half of the term, which is {length} s")
        return Settings(
            kind=kind,
            election=election,
            candidate=name(candidate, "the candidate"),
            term=length,
            value=value_of(value),
            wait=limit(wait, "the wait"),
            grace=min(seconds(grace, "the grace"), FOR_EVER),
            margin=before,
        )

    def term_millis(self) -> int:
        return millis(self.term, "the term")


def request_id() -> str:
    """A name for one attempt to get elected, unique among all."""
    return secrets.token_hex(16)


def jittered(pause: float) -> float:
    """From half to one and a half times as long."""
    return pause * (0.5 + secrets.randbelow(1_000_001) / 1_000_000)


class Patience:
    """When to stop to wait, by the clock of the event loop."""

    def __init__(self, wait: Optional[float]) -> None:
        self._loop = asyncio.get_running_loop()
        self.until = math.inf if wait is None else self._loop.time() + wait

    def left(self) -> float:
        return max(0.0, self.until - self._loop.time())

    def is_over(self) -> bool:
        return self.left() <= 0

    async def pause(self, pause: float) -> None:
        await asyncio.sleep(min(jittered(pause), self.left()))
