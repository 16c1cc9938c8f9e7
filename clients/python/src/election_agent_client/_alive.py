"""Asks the application whether it is alive."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Optional

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
        if asked.exception() is not None:
            raise NotAlive("alive() has failed")
        if not asked.result():
            raise NotAlive("alive() returned false")

    def _begin(self, function: Alive) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[bool] = loop.create_future()

        def tell(answer: bool, error: Optional[Exception]) -> None:
            if asked.done():
                return
            if error is None:
                asked.set_result(answer)
            else:
                asked.set_exception(error)
                # Nobody waits any more if the leadership has ended.
                asked.exception()

        def run() -> None:
            answer, error = False, None
            try:
                answer = bool(function())
            except Exception as failed:
                _log.exception("alive() has failed")
                error = failed
            try:
                loop.call_soon_threadsafe(tell, answer, error)
            except RuntimeError:
                pass  # The event loop is closed: nobody waits.

        # Not a thread of an executor: that would wait for a function that hangs when it shuts down.
        threading.Thread(target=run, name="election-alive", daemon=True).start()
        return asked
