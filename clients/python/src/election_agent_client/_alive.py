"""Asks the application whether it is alive."""

from __future__ import annotations

import asyncio
import logging
from typing import Optional

from . import _threads
from ._hooks import Alive

_log = logging.getLogger("election_agent_client")


class NotAlive(Exception):
    """Why the term must not be extended."""


class AliveCheck:
    """Asks one question at a time: an application that hangs is asked once."""

    def __init__(self, function: Optional[Alive]) -> None:
        self._function = function
        self._asked: Optional[asyncio.Future[bool]] = None

    async def ask(self, within: float) -> None:
        """Raises `NotAlive`."""
        if self._function is None:
            return
        if self._asked is None:
            self._asked = self._begin(self._function)
        done, _ = await asyncio.wait({self._asked}, timeout=within)
        if not done:
            raise NotAlive("alive() did not return")
        asked, self._asked = self._asked, None
        error = asked.exception()
        if error is not None:
            _log.error("alive() has failed", exc_info=error)
            raise NotAlive(f"alive() has failed: {error!r}")
        if not asked.result():
            raise NotAlive("alive() returned false")

    def _begin(self, function: Alive) -> asyncio.Future[bool]:
        def ask() -> bool:
            answer = function()
            # A coroutine is truthy, whatever it would return.
            why = _threads.awaitable(answer)
            if why is not None:
                raise TypeError(why)
            if answer is None:
                raise TypeError("it returned None: give True or False")
            return bool(answer)

        asked = asyncio.wrap_future(_threads.run(ask, "election-alive"))
        # Nothing waits any more if the leadership has ended.
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return asked
