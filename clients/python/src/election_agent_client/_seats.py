"""Turns of candidates to campaign within this process.

A leader's own campaign succeeds with a new token, and fences the leader. So two leaderships of one agent under the same
name take turns: the second campaigns when the first has resigned, or its term is over. Threads and event loops share
seats.
"""

from __future__ import annotations

import asyncio
import collections
import threading
from typing import Optional

from . import _timer
from .term import TermState

Name = tuple[str, str, str]


class _Waiter:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.turn: asyncio.Future[None] = self.loop.create_future()

    def wake(self) -> bool:
        """False: the event loop is closed, and nothing waits."""

        def set_result() -> None:
            if not self.turn.done():
                self.turn.set_result(None)

        try:
            self.loop.call_soon_threadsafe(set_result)
        except RuntimeError:
            return False
        return True


class Seats:
    """The elections for which candidates of this process campaign."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._taken: dict[Name, collections.deque[_Waiter]] = {}

    async def take(self, name: Name, within: Optional[float]) -> Optional[Seat]:
        """Waits for the turn, first come, first served. None: it has not come in time."""
        waiter: Optional[_Waiter] = None
        with self._lock:
            waiting = self._taken.get(name)
            if waiting is None:
                self._taken[name] = collections.deque()
            else:
                waiter = _Waiter()
                waiting.append(waiter)
        if waiter is None:
            return Seat(self, name)
        try:
            await asyncio.wait({waiter.turn}, timeout=within)
        except BaseException:
            if not self._give_up(name, waiter):
                # The turn has come meanwhile.
                self.free(name)
            raise
        if self._give_up(name, waiter):
            return None
        return Seat(self, name)

    def _give_up(self, name: Name, waiter: _Waiter) -> bool:
        """Whether the turn has not come."""
        with self._lock:
            waiting = self._taken.get(name)
            if waiting is not None and waiter in waiting:
                waiting.remove(waiter)
                return True
            return False

    def free(self, name: Name) -> None:
        """The next has its turn."""
        with self._lock:
            waiting = self._taken[name]
            while waiting:
                if waiting.popleft().wake():
                    return
            del self._taken[name]


class Seat:
    """The right to campaign."""

    def __init__(self, seats: Seats, name: Name) -> None:
        self._seats = seats
        self._name = name
        self._is_free = False

    def free(self) -> None:
        if not self._is_free:
            self._is_free = True
            self._seats.free(self._name)

    def free_after(self, term: TermState) -> None:
        """The term was not given up: the seat is free when its time is over."""

        def look() -> None:
            self.free()

        _timer.watch(term.valid_until, look)
