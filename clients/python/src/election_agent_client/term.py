"""A term, as the work of a leader sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from typing import Callable, NoReturn, Optional

from . import _clock, _timer
from ._hooks import Hooks, Leading
from .errors import Lost, LostReason

_log = logging.getLogger("election_agent_client")

FORKED = "this process was forked from the one that leads: make an Agent of its own in it"


class TermState:
    """A term, shared by the task that extends it and the work under it. All threads may use it."""

    def __init__(
        self,
        kind: str,
        election: str,
        candidate: str,
        token: int,
        valid_until: int,
        anchor: _clock.Anchor,
        margin: int,
        hooks: Hooks,
        term: type[BaseTerm],
    ) -> None:
        self.kind = kind
        self.election = election
        self.candidate = candidate
        self.token = token
        self.margin = margin
        self.hooks = hooks
        # A signal handler may check a term whose lock its thread holds.
        self.changed = threading.Condition(threading.RLock())
        self.valid_until = valid_until
        self.anchor = anchor
        self.jeopardy = False
        self.lost: Optional[LostReason] = None
        self._term = term
        self._pid = os.getpid()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._numbers = 0
        weak = weakref.ref(self)

        def look() -> Optional[int]:
            state = weak()
            return None if state is None else state.due()

        _timer.watch(valid_until - margin, look)

    def is_forked(self) -> bool:
        """Whether this is a copy, in a process that does not lead."""
        return os.getpid() != self._pid

    def look(self) -> Optional[LostReason]:
        """Checks the clock. Returns why the leadership is lost, if it is."""
        if self.lost is not None:
            return self.lost
        if self.is_forked():
            return LostReason.NO_TERM
        if self.anchor.has_jumped():
            self.lose(LostReason.CLOCK_JUMPED)
        elif _clock.now_ns() >= self.valid_until - self.margin:
            self._expire()
        return self.lost

    def due(self) -> Optional[int]:
        """For the timer: checks the clock, and returns when to check next."""
        return self.valid_until - self.margin if self.look() is None else None

    def _expire(self) -> None:
        # The term is over if the clock says so, also when it is extended at this moment.
        with self.changed:
            first = self.lost is None and _clock.now_ns() >= self.valid_until - self.margin
            if first:
                self.lost = LostReason.TERM_OVER
        if first:
            self._report(LostReason.TERM_OVER)

    def lose(self, why: LostReason) -> None:
        """The leadership is lost, unless it was before."""
        with self.changed:
            first = self.lost is None
            if first:
                self.lost = why
        if first:
            self._report(why)

    def _report(self, why: LostReason) -> None:
        _log.warning("leadership of %s/%s (token %d) lost: %s", self.kind, self.election, self.token, why)
        self._tell()
        self.hooks.lost(why)

    def give_up(self) -> None:
        """The leader gives the term up: work that still checks it must not act. That is no loss to report."""
        with self.changed:
            first = self.lost is None
            if first:
                self.lost = LostReason.NO_TERM
        if first:
            self._tell()

    def extend(self, valid_until: int, anchor: _clock.Anchor) -> None:
        """The term was extended. A promise that lasts longer still holds, and a loss that was reported stays one."""
        # If the time was over before the extension arrived, the loss has been reported to the work, or is about to be.
        self.look()
        with self.changed:
            if valid_until > self.valid_until:
                self.valid_until = valid_until
                self.anchor = anchor
            relieved = self.jeopardy and self.lost is None
            self.jeopardy = False
            listened = bool(self._listeners)
            self.changed.notify_all()
        if listened:
            self._tell()
        if relieved:
            self.hooks.state(Leading(self.token, self.valid_until))

    def jeopardize(self, reason: str) -> None:
        """An attempt to extend the term has failed, and it is not known whether the caller leads."""
        with self.changed:
            first = not self.jeopardy and self.lost is None
            self.jeopardy = self.jeopardy or first
        if first:
            _log.warning(
                "leadership of %s/%s (token %d) in jeopardy: the term was not extended: %s",
                self.kind,
                self.election,
                self.token,
                reason,
            )
            self.hooks.jeopardy(self._term(self), reason)

    def listen(self, listener: Callable[[], None]) -> int:
        """Calls a function, by whichever thread, whenever the term is extended or lost."""
        with self.changed:
            self._numbers += 1
            self._listeners[self._numbers] = listener
            return self._numbers

    def ignore(self, number: int) -> None:
        with self.changed:
            self._listeners.pop(number, None)

    def _tell(self) -> None:
        with self.changed:
            listeners = list(self._listeners.values())
            self.changed.notify_all()
        for listener in listeners:
            listener()

    def error(self, why: LostReason) -> Lost:
        return Lost(why, FORKED if self.is_forked() else None)


class Signal:
    """Lets a coroutine wait until a term is extended or lost."""

    def __init__(self, state: TermState) -> None:
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._number = state.listen(self._set)

    def _set(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            pass  # The event loop is closed: nothing waits.

    async def wait(self) -> None:
        """Returns after the next change. Check first, then wait."""
        await self._event.wait()
        self._event.clear()

    def close(self) -> None:
        self._state.ignore(self._number)


async def wait_lost(state: TermState) -> LostReason:
    """Waits until the leadership is lost."""
    signal = Signal(state)
    try:
        while True:
            why = state.look()
            if why is not None:
                return why
            await signal.wait()
    finally:
        signal.close()


class BaseTerm:
    """A term of leadership, as the work of the leader sees it.

    The clock decides: `check` and `remaining` read it each time, whatever the network, the event loop or other
    threads do. A term that was lost stays lost.
    """

    def __init__(self, state: TermState) -> None:
        self._state = state
        self._seen = state.valid_until

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every leader before. Give it to the storage that keeps the work."""
        return self._state.token

    @property
    def election(self) -> str:
        """The election's name."""
        return self._state.election

    @property
    def kind(self) -> str:
        """The election's kind."""
        return self._state.kind

    @property
    def candidate(self) -> str:
        """The name that the leader campaigned under."""
        return self._state.candidate

    @property
    def valid_until(self) -> int:
        """Until when no other candidate is elected unless the term is given up. It moves with each extension.

        In ns of a clock that goes on while the machine is suspended: on Linux
        `time.clock_gettime_ns(time.CLOCK_BOOTTIME)`, which all processes of the machine share.
        """
        return self._state.valid_until

    def remaining(self) -> float:
        """For how many seconds the leader may act: until `valid_until`, and 0.0 once the leadership is lost."""
        if self._state.look() is not None:
            return 0.0
        return _clock.seconds_until(self._state.valid_until)

    def check(self) -> None:
        """Returns if the leader may still act; raises `Lost` if it may not."""
        why = self._state.look()
        if why is not None:
            self._raise(why)

    @property
    def is_lost(self) -> bool:
        """Whether the leader may act no longer."""
        return self._state.look() is not None

    @property
    def in_jeopardy(self) -> bool:
        """Whether the last attempts to extend the term have failed without a definite denial."""
        self._state.look()
        return self._state.jeopardy

    def _raise(self, why: LostReason) -> NoReturn:
        raise self._state.error(why)

    def __repr__(self) -> str:
        state = self._state
        return (
            f"<{type(self).__name__} {state.kind}/{state.election} token={state.token}"
            f" remaining={self.remaining():.3f} lost={state.lost and state.lost.value}>"
        )
