"""A leadership: won, kept and given up, on one event loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Optional

from . import _clock, _unary
from ._hooks import Hooks, Leading, Resigned, Unanswered, Waiting
from ._pool import Pool
from ._seats import Seat, Seats
from ._settings import Patience, Settings
from ._streams import (
    Joined,
    LeftLost,
    NotJoined,
    NotLeft,
    Streams,
    ToldFallback,
    ToldGranted,
    ToldNotKnown,
    ToldWaiting,
)
from .errors import ElectionAgentError, Lost, LostReason, NotElected, NotKnown
from .term import BaseTerm, TermState

_log = logging.getLogger("election_agent_client")

LEAVE = 1.0
"""How long an agent may take to confirm that a stream has given an election up, before a call does it, in seconds."""


class Runtime:
    """What an agent has in an event loop."""

    def __init__(self, pool: Pool, streams: Streams) -> None:
        self.pool = pool
        self.streams = streams
        self.keepers: set[asyncio.Task[None]] = set()
        self._finishing: set[asyncio.Task[Any]] = set()
        self._closed = False

    def finish(self, leadership: Leadership) -> asyncio.Task[Optional[LostReason]]:
        """Gives up a leadership whose work has ended, also if nothing waits for it."""

        async def finish() -> Optional[LostReason]:
            try:
                return await leadership.give_up()
            finally:
                if self._closed:
                    # It has connected anew.
                    await self.pool.close()

        task = asyncio.get_running_loop().create_task(finish())
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    async def close(self) -> None:
        self._closed = True
        if self._finishing:
            await asyncio.wait(self._finishing)
        for keeper in list(self.keepers):
            keeper.cancel()
        if self.keepers:
            await asyncio.wait(self.keepers)
        await self.streams.close()
        await self.pool.close()


class Leadership:
    """A leadership that is extended in the background."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        hooks: Hooks,
        seat: Seat,
        state: TermState,
        joined: Optional[Joined],
        extend_at: Optional[float],
    ) -> None:
        self.state = state
        self.settings = settings
        self.runtime = runtime
        self._hooks = hooks
        self._seat = seat
        self._joined = joined
        self._extend_at = extend_at
        self.loop = asyncio.get_running_loop()
        self.works = True
        """Whether somebody works under it."""
        self.lapsed = False
        """The grace after the loss is over: the term is not extended any more, and not given up."""
        self._keeper = self.loop.create_task(self._keep())
        runtime.keepers.add(self._keeper)
        self._keeper.add_done_callback(runtime.keepers.discard)

    async def _keep(self) -> None:
        """Extends the term, by its stream as long as that does it, until the grace after a loss is over."""
        extending = asyncio.ensure_future(self._extend())
        over = asyncio.ensure_future(_unary.grace_over(self.state, self.settings.grace))
        try:
            await asyncio.wait({extending, over}, return_when=asyncio.FIRST_COMPLETED)
            if not over.done():
                # It was lost for certain.
                await over
        finally:
            for task in (extending, over):
                task.cancel()
            await asyncio.wait({extending, over})
            for task in (extending, over):
                if not task.cancelled() and task.exception() is not None:
                    _log.error("extending a term has failed", exc_info=task.exception())
        self.lapsed = True
        if self._joined is not None:
            self._joined.lapse()
        if self.works and self.state.lost in (LostReason.TERM_OVER, LostReason.CLOCK_JUMPED):
            _log.error(
                "the work has not ended within the grace after the loss of %s/%s: the term lapses",
                self.settings.kind,
                self.settings.election,
            )

    async def _extend(self) -> None:
        loop = asyncio.get_running_loop()
        extend_at = loop.time() if self._extend_at is None else self._extend_at
        if self._joined is not None:
            while not isinstance(await self._joined.told.get(), ToldFallback):
                pass
            # How long ago the stream extended it last is not known.
            extend_at = loop.time()
        await _unary.keep(self.runtime.pool, self.settings, self._hooks, self.state, extend_at)

    async def _stop(self) -> None:
        self._keeper.cancel()
        await asyncio.wait({self._keeper})

    async def finish(self) -> Optional[LostReason]:
        """The work has ended: gives the leadership up, unless it is another's. Returns why it was lost before.

        It is given up also if the waiting task is cancelled: no work is left under it.
        """
        return await asyncio.shield(self.runtime.finish(self))

    async def give_up(self) -> Optional[LostReason]:
        """What `finish` does."""
        led = self.state.look()
        if led not in (None, LostReason.TERM_OVER, LostReason.CLOCK_JUMPED):
            # A leader that lost to another has nothing to give up.
            try:
                await self._stop()
            finally:
                if self._joined is not None:
                    self._joined.lapse()
                self._seat.free()
            return led
        if self.lapsed:
            await self.lapse()
            return led
        # The work has ended: the next may lead at once, also if the time was over.
        try:
            await self.resign()
        except ElectionAgentError as error:
            _log.warning("the work has ended, but its term was not given up: it lapses: %s", error)
        return led

    async def lapse(self) -> None:
        """Stops extending the term without giving it up: work may still run under it."""
        try:
            await self._stop()
        finally:
            if self._joined is not None:
                self._joined.lapse()
            self._seat.free_after(self.state)

    async def resign(self) -> None:
        """Gives the leadership up. No work may be under way that needs it.

        Raises `Lost` if the candidate did not lead any more, `NotKnown` and `Unreachable` if no agent answered: the
        term lapses.
        """
        free = False
        try:
            # First, so that no extension is sent after this.
            await self._stop()
            known = self.state.look()
            self.state.give_up()
            if known is not None and known not in (LostReason.TERM_OVER, LostReason.CLOCK_JUMPED):
                # There is nothing to give up.
                free = True
                raise self.state.error(known)
            try:
                await self._leave()
            except Lost:
                free = True
                raise
            free = True
        finally:
            if self._joined is not None:
                self._joined.lapse()
            if free:
                self._seat.free()
            else:
                self._seat.free_after(self.state)
        state = self.state
        _log.info("%s has resigned from %s/%s (token %d)", state.candidate, state.kind, state.election, state.token)
        self._hooks.state(Resigned())

    async def _leave(self) -> None:
        uncertain = False
        if self._joined is not None:
            try:
                await asyncio.wait_for(self._joined.leave(), LEAVE)
                return
            except LeftLost as lost:
                raise Lost(lost.reason) from None
            except NotJoined:
                pass
            except (NotLeft, asyncio.TimeoutError):
                uncertain = True
        await _unary.resign(self.runtime.pool, self.settings, self.state.token, uncertain)


async def start(runtime: Runtime, seats: Seats, settings: Settings, hooks: Hooks, view: type[BaseTerm]) -> Leadership:
    """Waits until elected.

    Raises `NotElected` after the time to wait, `NotKnown` or `Unreachable` if no agent answered at its end, `Refused`
    at once.
    """
    patience = Patience(settings.wait)
    seat = await seats.take((settings.kind, settings.election, settings.candidate), settings.wait)
    if seat is None:
        # A leadership of this process has not ended.
        raise NotElected(settings.candidate)
    joined: Optional[Joined] = None
    state: Optional[TermState] = None
    extend_at: Optional[float] = None
    try:
        if settings.wait != 0 and runtime.streams.are_offered():
            joined = runtime.streams.join(settings, hooks, None, view)
            state = await _granted(joined, hooks, patience)
            if state is None:
                joined = None
        if state is None:
            granted = await _unary.campaign(runtime.pool, settings, hooks, patience)
            extend_at = granted.extend_at
            state = TermState(
                settings.kind,
                settings.election,
                settings.candidate,
                granted.token,
                granted.valid_until,
                granted.anchor,
                _clock.nanos(settings.margin),
                hooks,
                view,
            )
            if runtime.streams.are_offered():
                joined = runtime.streams.join(settings, hooks, state, view)
    except BaseException:
        if joined is not None and joined.term is not None:
            # Granted at the last moment: nobody works under it.
            joined.withdraw()
            seat.free_after(joined.term)
        else:
            if joined is not None:
                joined.lapse()
            seat.free()
        raise
    leadership = Leadership(runtime, settings, hooks, seat, state, joined, extend_at)
    _log.info("%s is elected for %s/%s (token %d)", state.candidate, state.kind, state.election, state.token)
    hooks.state(Leading(state.token, state.valid_until))
    return leadership


async def _granted(joined: Joined, hooks: Hooks, patience: Patience) -> Optional[TermState]:
    """Waits until elected over a stream. None: the caller falls back to calls."""
    teller = _unary.Teller(hooks)
    last: ElectionAgentError = NotKnown("no answer in time")
    loop = asyncio.get_running_loop()
    over: Optional[asyncio.Future[None]] = None
    timer: Optional[asyncio.TimerHandle] = None
    if patience.left() != float("inf"):
        over = loop.create_future()
        timer = loop.call_later(patience.left(), over.set_result, None)
    try:
        while True:
            told = asyncio.ensure_future(joined.told.get())
            try:
                waits: set[asyncio.Future[Any]] = {told} if over is None else {told, over}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not told.done():
                    told.cancel()
            if not told.done() or told.cancelled():
                raise last
            what = told.result()
            if isinstance(what, ToldGranted):
                return what.term
            if isinstance(what, ToldWaiting):
                teller.tell(Waiting(what.leader))
                last = NotElected(what.leader)
            elif isinstance(what, ToldNotKnown):
                teller.tell(Unanswered(str(what.error)))
                last = what.error
            else:
                return None
    finally:
        if timer is not None:
            timer.cancel()
