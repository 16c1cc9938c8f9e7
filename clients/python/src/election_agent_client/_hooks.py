"""The caller's callbacks, and the thread that calls them."""

from __future__ import annotations

import collections
import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from . import _threads
from .errors import Code, LostReason

if TYPE_CHECKING:
    from .term import BaseTerm

_log = logging.getLogger("election_agent_client")


@dataclass(frozen=True)
class Waiting:
    """Another candidate leads, or nothing is known yet: the candidate waits."""

    leader: Optional[str]
    """The leader, if the agent named it."""


@dataclass(frozen=True)
class Leading:
    """The candidate leads."""

    token: int
    """The fencing token."""
    valid_until: int
    """Until when it may act unless the term is extended, in ns of the clock that `Term.valid_until` has."""


@dataclass(frozen=True)
class Jeopardy:
    """An attempt to extend the term has failed, and it is not known whether the candidate leads."""

    reason: str
    """Why the attempt has failed."""


@dataclass(frozen=True)
class Unanswered:
    """No agent answers while the candidate waits."""

    reason: str
    """Why not."""


@dataclass(frozen=True)
class ExtensionRefused:
    """The agent refuses to extend the term, which goes on until its time is over."""

    code: Code
    """What kind of refusal."""
    message: str
    """The agent's message."""


@dataclass(frozen=True)
class LeadershipLost:
    """The leadership is lost."""

    reason: LostReason
    """Why."""


@dataclass(frozen=True)
class Resigned:
    """The candidate has given its leadership up."""


Standing = Union[Waiting, Leading, Jeopardy, Unanswered, ExtensionRefused, LeadershipLost, Resigned]
"""Where a candidate stands in an election, as `on_state` reports it."""

OnState = Callable[[Standing], object]
OnJeopardy = Callable[[Any], object]
"""With the term, of the class that the leader's interface uses."""
OnLost = Callable[[LostReason], object]
Alive = Callable[[], bool]


@dataclass(frozen=True)
class Hooks:
    """The caller's functions."""

    on_state: Optional[OnState] = None
    on_jeopardy: Optional[OnJeopardy] = None
    on_lost: Optional[OnLost] = None
    alive: Optional[Alive] = None

    def state(self, standing: Standing) -> None:
        if self.on_state is not None:
            hook = self.on_state
            call(lambda: hook(standing))

    def lost(self, why: LostReason) -> None:
        self.state(LeadershipLost(why))
        if self.on_lost is not None:
            hook = self.on_lost
            call(lambda: hook(why))

    def jeopardy(self, term: BaseTerm, reason: str) -> None:
        self.state(Jeopardy(reason))
        if self.on_jeopardy is not None:
            hook = self.on_jeopardy
            call(lambda: hook(term))


class _Calls:
    """Calls the caller's functions in order, by a thread that runs while there are calls: neither the timer nor an
    extension waits for them, and they run also while the event loop is blocked."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._running = False

    def put(self, call: Callable[[], object]) -> None:
        with self._lock:
            self._calls.append(call)
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="election-hooks", daemon=True).start()
        except RuntimeError:
            # There are too many threads, or the interpreter ends. The next call tries again.
            self._running = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._running = False
                    return
                call = self._calls.popleft()
            why: Optional[str] = None
            try:
                why = _threads.awaitable(call())
            except Exception:
                _log.exception("a leadership callback has failed")
            except BaseException as error:
                # Those after it are called all the same.
                why = (
                    f"it raised {type(error).__name__}, which ends no program from a thread: os._exit and"
                    " signal.raise_signal do"
                )
            if why is not None:
                _log.error("a leadership callback has failed: %s", why)


_CALLS = _Calls()


def _after_fork() -> None:
    global _CALLS
    _CALLS = _Calls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def call(function: Callable[[], object]) -> None:
    _CALLS.put(function)
