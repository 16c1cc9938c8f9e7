"""The timer that ends terms: a thread of its own, shared by the process, which needs neither an event loop nor a
network.

It waits in steps and checks the clock after each, as the clock of its waits may stand still while the machine is
suspended. The thread runs while there is something to wait for.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import socket
import threading
from typing import Callable, Optional

from . import _clock

STEP = 0.1
"""How long the thread waits at the most before it checks the clock again, in seconds."""

_log = logging.getLogger("election_agent_client")

Look = Callable[[], Optional[int]]
"""Checks the clock. Returns when to check next, if at all."""


class Timer:
    """Calls functions when their time has come."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: list[tuple[int, int, Look]] = []
        self._numbers = itertools.count()
        self._thread: Optional[threading.Thread] = None
        self._waits: Optional[socket.socket] = None
        self._wakes: Optional[socket.socket] = None

    def watch(self, at: int, look: Look) -> None:
        """Calls the function at a time by the clock, and again when it says so."""
        with self._lock:
            earliest = not self._entries or at < self._entries[0][0]
            heapq.heappush(self._entries, (at, next(self._numbers), look))
            if self._thread is None:
                # A lock's or queue's timeout may count by the wall clock before Python 3.11: sockets never do.
                self._waits, self._wakes = socket.socketpair()
                self._waits.setblocking(False)
                self._wakes.setblocking(False)
                thread = threading.Thread(target=self._run, name="election-timer", daemon=True)
                try:
                    thread.start()
                except BaseException:
                    # There are too many threads: the next use of the timer tries again.
                    self._entries.clear()
                    self._end()
                    raise
                self._thread = thread
            elif earliest and self._wakes is not None:
                try:
                    self._wakes.send(b"!")
                except BlockingIOError:
                    pass  # It is being woken already.

    def _run(self) -> None:
        waits = self._waits
        assert waits is not None
        poll = select.poll() if hasattr(select, "poll") else None
        if poll is not None:
            poll.register(waits, select.POLLIN)
        while True:
            due: list[Look] = []
            with self._lock:
                now = _clock.now_ns()
                while self._entries and self._entries[0][0] <= now:
                    due.append(heapq.heappop(self._entries)[2])
                if not due and not self._entries:
                    self._end()
                    return
                first = self._entries[0][0] if self._entries else now
            # Without the lock: a callback may start other timers.
            for look in due:
                try:
                    again = look()
                except Exception:
                    _log.exception("the timer's call has failed")
                    continue
                if again is not None:
                    with self._lock:
                        heapq.heappush(self._entries, (again, next(self._numbers), look))
            if due:
                continue
            wait = min(STEP, max(0, first - now) / _clock.NANOS)
            if poll is not None:
                woken = bool(poll.poll(int(wait * 1000) + 1))
            else:
                woken = bool(select.select([waits], [], [], wait)[0])
            if woken:
                try:
                    waits.recv(1024)
                except BlockingIOError:
                    pass

    def _end(self) -> None:
        for end in (self._waits, self._wakes):
            if end is not None:
                end.close()
        self._thread = self._waits = self._wakes = None


TIMER = Timer()


def _after_fork() -> None:
    """The child has no thread of the timer, and leads nothing that has to end."""
    global TIMER
    TIMER = Timer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def watch(at: int, look: Look) -> None:
    """Calls the function at a time by the clock, and again when it says so."""
    TIMER.watch(at, look)
