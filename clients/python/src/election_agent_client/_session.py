"""An open stream to lead by."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from typing import Any, Callable, NamedTuple, Optional

import grpc
import grpc.aio

from . import _clock
from ._credentials import NoToken
from ._pool import EOF, Connection, Pool, Route, WaitLane, code_of, describe, unsent
from ._proto import election_agent_pb2 as pb
from .errors import Code, ElectionAgentError, NotKnown, Unreachable, listed

_log = logging.getLogger("election_agent_client")

OPEN = (0.3, 2.0)
"""The shortest and the longest time after which another agent is asked for a stream, too, in seconds."""
PATIENCE = (1.0, 4.0)
"""The shortest and the longest time in which an agent is to open a stream: one that is slow is better than none."""
PINGS = 64
"""How many pings are remembered, for standings that name them."""


class Sent(NamedTuple):
    """When a message was sent, noted before."""

    at: int
    anchor: _clock.Anchor
    time: float
    """By the event loop's clock, for time-outs."""

    @staticmethod
    def now(loop: asyncio.AbstractEventLoop) -> Sent:
        anchor = _clock.Anchor()
        return Sent(_clock.now_ns(), anchor, loop.time())


class NotOffered(Exception):
    """Older agents have no streams."""


class StreamRefused(Exception):
    """The agent refuses a stream: why."""


class NotOpened(Exception):
    """No agent has opened a stream."""

    def __init__(self, error: ElectionAgentError, silent: bool) -> None:
        super().__init__(error)
        self.error = error
        self.silent = silent
        """An agent has sent nothing in all the time it had."""


class _NotWelcome(Exception):
    """The agent did not open the stream: why."""


def clamp(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


class Session:
    """A stream that an agent has welcomed."""

    def __init__(self, pool: Pool, route: Route) -> None:
        self.route = route
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._wait = WaitLane(pool)
        self.connection: Connection = pool.connection(route, self._wait.lane)
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._hello: Optional[Sent] = None
        self._pings: collections.OrderedDict[int, Sent] = collections.OrderedDict()
        self._last_ping = 0
        self._last_pong = 0
        self.answers_in = 0.0
        """How long the agent took to answer last, in seconds."""
        self._closed = False

    @staticmethod
    async def open(pool: Pool, candidate: str, ping_every: float, leads: bool) -> Session:
        """Opens a stream at the agent that answers first. `leads`: a term runs meanwhile, which may have to be
        extended by calls.

        Raises `NotOffered`, `StreamRefused`, `NotOpened`.
        """
        loop = asyncio.get_running_loop()
        routes, tried = await pool.routes()
        next_after = clamp(ping_every / 2, OPEN)
        within = clamp(ping_every if leads else 2 * ping_every, PATIENCE)
        reached = silent = older = False
        attempts: dict[asyncio.Task[None], Session] = {}
        try:

            def begin() -> None:
                if routes:
                    session = Session(pool, routes.pop(0))
                    attempts[loop.create_task(session._open(candidate, ping_every, within))] = session

            begin()
            while attempts:
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=next_after if routes or older else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done and not routes:
                    # Calls to the older one do rather than to wait for those that keep silent.
                    break
                for task in done:
                    session = attempts.pop(task)
                    try:
                        task.result()
                    except asyncio.TimeoutError:
                        reached = silent = True
                        why = f"no stream within {within} s"
                    except NoToken as error:
                        why = str(error)
                    except _NotWelcome as error:
                        reached = True
                        why = str(error)
                    except asyncio.CancelledError:
                        reached = True
                        why = "the connection was closed"
                    except grpc.aio.AioRpcError as error:
                        code = code_of(error)
                        if code is not None:
                            session.close()
                            if code is Code.UNIMPLEMENTED:
                                # Another of the agents may be newer.
                                older = True
                                continue
                            raise StreamRefused(describe(error)) from None
                        reached = reached or unsent(error) is None
                        why = pool.explain(session.route, error)
                    else:
                        pool.prefer(session.route)
                        return session
                    tried.append((pool.label(session.route), why))
                    pool.discard(session.connection)
                    session.close()
                begin()
        finally:
            for task, session in attempts.items():
                task.cancel()
                session.close()
            if attempts:
                await asyncio.wait(attempts)
        if older:
            raise NotOffered
        pool.forget_addresses()
        if reached:
            raise NotOpened(NotKnown(listed(tried)), silent)
        raise NotOpened(Unreachable(tried), silent)

    async def _open(self, candidate: str, ping_every: float, within: float) -> None:
        await asyncio.wait_for(self._welcome(candidate, ping_every), within)

    async def _welcome(self, candidate: str, ping_every: float) -> None:
        metadata = await self._pool.metadata()
        self._hello = Sent.now(self._loop)
        call = self._call = self.connection.stream("Leadership/Lead", pb.LeadEvent)(metadata=metadata)
        hello = pb.Hello(candidate=candidate, ping_every=int(ping_every * 1000))
        # Some agents reply only after Hello. A write waits for the connection: read beside it.
        self.send(hello=hello)
        self._tasks.append(self._loop.create_task(self._write()))
        first = await call.read()
        what = None if first is EOF else first.WhichOneof("what")
        if what == "goodbye":
            raise _NotWelcome(f"goodbye: {first.goodbye.reason}")
        if what != "welcome":
            raise _NotWelcome("the agent did not welcome the stream")
        self.answers_in = self._loop.time() - self._hello.time

    def read(self, message: Callable[[Session, Any], None], ended: Callable[[Session, str], None]) -> None:
        """Calls a function with each message, and another once when the stream has ended."""

        async def read() -> None:
            why = "the agent has ended the stream"
            try:
                while True:
                    event = await self._call.read()
                    if event is EOF:
                        break
                    message(self, event)
            except grpc.aio.AioRpcError as error:
                why = describe(error)
            except Exception as error:
                _log.exception("a message of a stream to lead by was not handled")
                why = describe(error)
            ended(self, why)

        self._tasks.append(self._loop.create_task(read()))

    async def _write(self) -> None:
        try:
            while True:
                request = await self._requests.get()
                if os.getpid() != self._pid:
                    return
                await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            pass  # The stream has ended, which its events report.

    def send(self, **what: Any) -> None:
        if not self._closed and os.getpid() == self._pid:
            self._requests.put_nowait(pb.LeadRequest(**what))

    def ping(self) -> None:
        self._last_ping += 1
        if len(self._pings) == PINGS:
            self._pings.popitem(last=False)
        # Before it is sent: what is granted counts from here.
        self._pings[self._last_ping] = Sent.now(self._loop)
        self.send(ping=pb.Ping(seq=self._last_ping))

    def sent(self, ping: int) -> Sent:
        """When a ping was sent. One that is not remembered counts as sent with Hello, which was earlier."""
        assert self._hello is not None
        return self._pings.get(ping, self._hello)

    def answered(self, ping: int) -> None:
        self._last_pong = max(self._last_pong, ping)
        self.answers_in = self._loop.time() - self.sent(ping).time

    def silent_since(self) -> Optional[float]:
        """When the first ping was sent that is not answered."""
        return next((sent.time for seq, sent in self._pings.items() if seq > self._last_pong), None)

    def is_late(self) -> bool:
        """Whether a ping is unanswered for clearly longer than the agent took to answer last."""
        since = self.silent_since()
        return since is not None and self._loop.time() - since > self.answers_in * 1.25

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        if self._call is not None:
            self._call.cancel()
        for task in self._tasks:
            task.cancel()
        self._wait.leave()
        self.connection.release()
