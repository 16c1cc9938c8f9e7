"""Following who leads: opens a stream, and the next one when that ends or is about to."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable
from typing import Any, Callable, Optional

import grpc
import grpc.aio

from ._credentials import NoToken
from ._pool import EOF, Connection, Pool, Route, WaitLane, code_of, describe
from ._proto import election_agent_pb2 as pb
from ._settings import jittered
from .errors import Code, ElectionAgentError, NotKnown, Refused, Unreachable, listed
from .types import Cause, Certainty, Event, State, Synced, state_of

_log = logging.getLogger("election_agent_client")

HEARTBEAT_MS = 5_000
"""After how long without another message agents send a heartbeat."""
SILENCE = 12.0
"""After how many seconds without any message a stream counts as broken."""
OPEN = 3.0
"""How many seconds an agent may take to open a stream."""
QUIET = 1.0
"""For how many seconds a broken stream is not reported: another is usually open by then."""
REFUSALS = 4
"""How often in a row an agent may refuse for reasons that may pass."""
PAUSE = (0.05, 1.0)
"""The shortest and the longest pause between attempts to open a stream, in seconds."""
BRIEF = 1.0
"""A stream that ends sooner than this, in seconds, is followed by the next after a pause only."""
VACANT = 20_000
"""How many vacant elections are remembered, beside those that are held."""
EVENTS = 16
"""How many events wait to be read. Agents conflate the rest."""

Name = tuple[str, str]


class Verdict(enum.Enum):
    """What to do with a state."""

    NEWS = enum.auto()
    """It was not reported before."""
    SAME = enum.auto()
    """It was reported last."""
    OLDER = enum.auto()
    """The last reported state is later, unless something was rolled back or forgotten: a quorum has to decide."""


class Known:
    """Of each election, what was reported last. States follow each other: held with a token, vacant with it, held
    with a larger one."""

    def __init__(self) -> None:
        self._states: dict[Name, tuple[int, bool]] = {}

    def judge(self, state: State) -> Verdict:
        """Compares a state with those that were reported before."""
        standing = (state.token, not state.is_held)
        known = self._states.get((state.kind, state.election))
        if known is None:
            return Verdict.NEWS
        if known == standing:
            return Verdict.SAME
        if standing < known and state.cause is not Cause.ROLLED_BACK:
            return Verdict.OLDER
        return Verdict.NEWS

    def put(self, state: State) -> None:
        """The state is reported."""
        self._states[state.kind, state.election] = (state.token, not state.is_held)
        if len(self._states) > 2 * VACANT:
            # Any may be dropped: a quorum verifies what they would have decided.
            vacant = [name for name, (_, is_vacant) in self._states.items() if is_vacant]
            for name in vacant[VACANT:]:
                del self._states[name]

    def has(self, state: State) -> bool:
        """Whether anything was reported of the election."""
        return (state.kind, state.election) in self._states

    def held_beside(self, states: dict[Name, State]) -> list[Name]:
        """The elections that were reported as held and are not among these states."""
        return [name for name, (_, is_vacant) in self._states.items() if not is_vacant and name not in states]


class _Broken(Exception):
    """The stream has ended: why."""


class _Session:
    """A stream, and where it comes from."""

    def __init__(self, pool: Pool, route: Route) -> None:
        self.route = route
        self._wait = WaitLane(pool)
        self.connection: Connection = pool.connection(route, self._wait.lane)
        self._call: Any = None
        self._closed = False
        self.opened = 0.0
        """When, by the event loop's clock."""
        self.states: dict[Name, State] = {}
        """Its first messages."""
        self.doubt: Optional[pb.Certainty] = None

    async def open(self, pool: Pool, request: pb.ObserveRequest) -> None:
        """Opens it, and reads the present states. Raises `_Broken`, `NoToken`, `grpc.aio.AioRpcError`."""
        try:
            metadata = await asyncio.wait_for(pool.metadata(), OPEN)
            self._call = self.connection.answers("Leadership/Observe", pb.Observation)(request, metadata=metadata)
            # Agents send their headers when they have accepted it.
            await asyncio.wait_for(self._call.initial_metadata(), OPEN)
        except asyncio.TimeoutError:
            raise _Broken(f"no stream within {OPEN} s") from None
        while True:
            message = await self.read()
            what = message.WhichOneof("what")
            if what == "state":
                state = state_of(message.state)
                if state is not None:
                    self.states[state.kind, state.election] = state
            elif what == "synced":
                self.opened = asyncio.get_running_loop().time()
                return
            elif what == "certainty":
                self.doubt = None if message.certainty.certain else message.certainty
            elif what == "goodbye":
                raise _Broken(f"goodbye: {message.goodbye.reason}")

    async def read(self) -> Any:
        """The next message. Raises `_Broken`, or what has ended the stream."""
        try:
            message = await asyncio.wait_for(self._call.read(), SILENCE)
        except asyncio.TimeoutError:
            raise _Broken(f"no heartbeat within {SILENCE} s") from None
        if message is EOF:
            raise _Broken("the agent has ended the stream")
        return message

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._call is not None:
                self._call.cancel()
            self._wait.leave()
            self.connection.release()


async def open_session(pool: Pool, request: pb.ObserveRequest) -> _Session:
    """Opens a stream at the first agent that answers. Raises `Refused`, `NotKnown`."""
    routes, tried = await pool.routes()
    not_offered: Optional[Refused] = None
    others_failed = bool(tried)
    for route in routes:
        session = _Session(pool, route)
        try:
            await session.open(pool, request)
        except (_Broken, NoToken) as error:
            why = str(error)
        except grpc.aio.AioRpcError as error:
            code = code_of(error)
            why = pool.explain(route, error)
            if code is Code.UNIMPLEMENTED:
                # One of another version may offer it.
                session.close()
                not_offered = Refused(code, error.details() or "")
                tried.append((pool.label(route), why))
                continue
            if code is not None:
                session.close()
                raise Refused(code, error.details() or "") from None
        except BaseException:
            session.close()
            raise
        else:
            pool.prefer(route)
            return session
        pool.discard(session.connection)
        session.close()
        tried.append((pool.label(route), why))
        others_failed = True
    pool.forget_addresses()
    # Newer ones may be unreachable at the moment.
    if not_offered is not None and not others_failed:
        raise not_offered
    raise NotKnown(listed(tried))


class Follower:
    """Follows until it is cancelled, or the agent refuses."""

    def __init__(
        self,
        pool: Pool,
        request: pb.ObserveRequest,
        ask: Callable[[str, str], Awaitable[State]],
        tell: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._request = request
        self._ask_state = ask
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._known = Known()
        self._synced = False
        """Whether `Synced` was reported."""
        self._certain = True
        """The certainty that was reported last."""
        self._confirmed = self._loop.time()
        """When a stream last sent something certain."""
        self._session: Optional[_Session] = None
        self._next: Optional[asyncio.Task[_Session]] = None
        """The next stream, while it is being opened."""
        self._pause = PAUSE[0]
        """How long to wait after a stream that was brief, in seconds."""

    async def run(self) -> None:
        """Raises `Refused`: trying again does not help."""
        try:
            self._session = await self._reopen("no agent has answered", 0.0)
            while True:
                await self._take_over(self._session)
                why = await self._read(self._session)
                if why is not None:
                    _log.debug("a stream of observations has ended: %s", why)
                    self._pool.discard(self._session.connection)
                    self._pool.avoid(self._session.route)
                    self._session.close()
                    self._session = await self._reopen(why, self._pause_after(self._session))
        finally:
            if self._next is not None:
                self._next.cancel()
                await asyncio.wait({self._next})
                if not self._next.cancelled() and self._next.exception() is None:
                    self._next.result().close()
            if self._session is not None:
                self._session.close()

    def _pause_after(self, session: _Session) -> float:
        """An agent that ends its streams as soon as they are open is not kept busy with opening more of them."""
        if self._loop.time() - session.opened >= BRIEF:
            self._pause = PAUSE[0]
            return 0.0
        pause = jittered(self._pause)
        self._pause = min(self._pause * 2, PAUSE[1])
        return pause

    async def _open(self, after: float) -> _Session:
        await asyncio.sleep(after)
        return await open_session(self._pool, self._request)

    async def _reopen(self, why: str, after: float) -> _Session:
        """Opens a stream, however long it takes; reports uncertainty when it takes long."""
        refusals, pause = 0, PAUSE[0]
        while True:
            opening = asyncio.ensure_future(self._open(after))
            try:
                while not opening.done():
                    quiet = max(0.0, QUIET - (self._loop.time() - self._confirmed)) if self._certain else None
                    await asyncio.wait({opening}, timeout=quiet)
                    if not opening.done() and self._certain:
                        self._certain = False
                        await self._tell(Certainty(False, self._loop.time() - self._confirmed, why))
            except BaseException:
                opening.cancel()
                await asyncio.wait({opening})
                if not opening.cancelled() and opening.exception() is None:
                    opening.result().close()
                raise
            try:
                return opening.result()
            except Refused as error:
                refusals += 1
                may_pass = error.code is Code.RESOURCE_EXHAUSTED or (
                    error.code is Code.UNAUTHENTICATED and self._synced
                )
                if not may_pass or refusals >= REFUSALS:
                    raise
                why = f"{error.code}: {error.message}"
            except (NotKnown, Unreachable) as error:
                why = str(error)
            _log.debug("no stream of observations: %s", why)
            after = jittered(pause)
            pause = min(pause * 2, PAUSE[1])

    async def _read(self, session: _Session) -> Optional[str]:
        """Reads until the stream has broken, and returns why; or None: another has taken its place."""
        leaving = False
        reading: Optional[asyncio.Future[Any]] = None
        try:
            while True:
                if reading is None:
                    reading = asyncio.ensure_future(session.read())
                waits = {reading} if self._next is None else {reading, self._next}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self._next is not None and self._next.done():
                    if await self._take_next(session):
                        return None
                    continue
                done, reading = reading, None
                try:
                    message = done.result()
                except _Broken as error:
                    if leaving and self._next is not None:
                        # The new one may be about to be open.
                        await asyncio.wait({self._next}, timeout=OPEN)
                        if self._next.done() and await self._take_next(session):
                            return None
                    return str(error)
                except grpc.aio.AioRpcError as error:
                    return describe(error)
                what = message.WhichOneof("what")
                if what == "state":
                    state = state_of(message.state)
                    if state is not None:
                        await self._state(state, False)
                elif what == "certainty":
                    await self._certainty(message.certainty)
                elif what == "goodbye":
                    leaving = True
                    self._goodbye(session, message.goodbye)
                if self._certain:
                    self._confirmed = self._loop.time()
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.wait({reading})
                if not reading.cancelled():
                    reading.exception()

    async def _take_next(self, old: _Session) -> bool:
        """Goes on with the stream that was opened, if it was. Otherwise the old one goes on for a moment."""
        assert self._next is not None
        opened, self._next = self._next, None
        try:
            self._session = opened.result()
        except ElectionAgentError as error:
            _log.debug("no stream to go on with: %s", error)
            return False
        old.close()
        return True

    def _goodbye(self, session: _Session, goodbye: pb.Goodbye) -> None:
        _log.debug("a stream of observations is about to end: %s", goodbye.reason)
        # Its connection ends, too; an agent that shuts down does not come back soon.
        self._pool.discard(session.connection)
        if goodbye.reason != "AGE":
            self._pool.avoid(session.route)
        if self._next is not None:
            return
        after = max(max(0, goodbye.reconnect_after) / 1000, self._pause_after(session))
        self._next = self._loop.create_task(self._open(after))

    async def _take_over(self, session: _Session) -> None:
        """A stream has begun: reports what is new in its first messages."""
        present, session.states = session.states, {}
        gone = self._known.held_beside(present)
        for state in present.values():
            await self._state(state, True)
        # A listing may lack an election that is held: no vacancy is reported before a quorum has confirmed it.
        for kind, election in gone:
            await self._report(await self._ask(kind, election), True)
        if not self._synced:
            self._synced = True
            await self._tell(Synced())
        await self._certainty(session.doubt or pb.Certainty(certain=True))

    async def _state(self, state: State, again: bool) -> None:
        verdict = self._known.judge(state)
        if verdict is Verdict.NEWS:
            await self._report(state, again)
        elif verdict is Verdict.OLDER:
            await self._report(await self._ask(state.kind, state.election), again)

    async def _report(self, state: State, again: bool) -> None:
        """Reports a state unless it was the last."""
        if self._known.judge(state) is Verdict.SAME:
            return
        if again and self._known.has(state) and not state.missed:
            state = State(state.kind, state.election, state.leader, state.token, state.cause, state.position, True)
        self._known.put(state)
        await self._tell(state)

    async def _ask(self, kind: str, election: str) -> State:
        """Asks a quorum for a state, until there is an answer."""
        pause = PAUSE[0]
        while True:
            try:
                return await self._ask_state(election, kind)
            except Refused as error:
                if error.code is not Code.RESOURCE_EXHAUSTED:
                    raise
                _log.debug("a state is not known: %s", error)
            except (NotKnown, Unreachable) as error:
                _log.debug("a state is not known: %s", error)
            await asyncio.sleep(jittered(pause))
            pause = min(pause * 2, PAUSE[1])

    async def _certainty(self, certainty: pb.Certainty) -> None:
        if certainty.certain:
            self._confirmed = self._loop.time()
            if self._certain:
                return
        self._certain = certainty.certain
        await self._tell(Certainty(certainty.certain, max(0, certainty.unconfirmed_for) / 1000, certainty.reason))
