"""The agent, as asynchronous programs see it."""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import logging
import math
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Generic,
    Optional,
    TypeVar,
    Union,
)

from . import _fork, _leadership, _settings
from ._credentials import Path, Tls, Tokens, TokenSource
from ._hooks import Alive, Hooks, OnLost, OnState
from ._leadership import Leadership, Runtime
from ._observe import HEARTBEAT_MS, Follower
from ._pool import Answer, Answered, Endpoint, Failure, Plan, Pool, WaitLane
from ._proto import election_agent_pb2 as pb
from ._seats import Name, Seats
from ._settings import DEFAULT_KIND, GRACE, TERM, Duration, Settings, millis
from ._streams import Streams
from ._unary import promised
from .errors import ConfigError, Lost, LostReason, NotElected, NotKnown, lost_of
from .term import FORKED, BaseTerm, Signal, TermState, wait_lost
from .types import (
    Campaigned,
    Certainty,
    Event,
    Kinds,
    Leader,
    Leaders,
    NotCurrent,
    Pod,
    State,
    Verified,
    leader_of,
    pod_of,
    state_of,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ._decorators import LeaderOnly

_log = logging.getLogger("election_agent_client")

TIMEOUT = 10.0
"""How long a plain call may take, in seconds."""
PAGE = 1_000
"""How many leaders or kinds a page of a listing has."""

Result = TypeVar("Result")
View = TypeVar("View", bound=BaseTerm)


class Term(BaseTerm):
    """A term of leadership, as the work of the leader sees it.

    The clock decides: `check` and `remaining` read it each time, whatever the network, the event loop or other
    threads do. A term that was lost stays lost.
    """

    async def lost(self) -> LostReason:
        """Waits until the leadership is lost: at once when another leads, and at the latest the margin before
        `valid_until`. The body of `Agent.lead` is cancelled by itself: this is for work in other tasks."""
        return await wait_lost(self._state)

    async def renewed(self) -> int:
        """Waits until `valid_until` has moved since this was called last on this object, and returns it.

        Raises `Lost` when the leadership is lost.
        """
        signal = Signal(self._state)
        try:
            while True:
                # The clock first: it may know of a loss that was not reported yet.
                why = self._state.look()
                if why is not None:
                    self._raise(why)
                if self._state.valid_until > self._seen:
                    self._seen = self._state.valid_until
                    return self._seen
                await signal.wait()
        finally:
            signal.close()


class _Body:
    """Cancels the task that works under a term when the leadership is lost, as long as the work goes on."""

    def __init__(self, leadership: Leadership, is_contained: bool = True) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._leadership = leadership
        self.loop = asyncio.get_running_loop()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._cancels = 0
        self._cancelling = self._pending()
        """How often the task had been cancelled before for another reason."""
        self._listener: Optional[int] = leadership.state.listen(self._told)
        self.is_contained = is_contained
        """The cancelled task goes on after the body."""
        # Lost before it began: cancelled when the task pauses, as one that runs would be cancelled after its work has
        # ended.
        self.loop.call_soon(self._look)

    def begin(self) -> None:
        """Tasks that a loss cancels go on after the body, also after an earlier body of the same term."""
        self.is_contained = True
        task = asyncio.current_task()
        if task is not None and task is not self._task:
            self._task = task
            self._cancelling = self._pending()
        if self._listener is None:
            self._listener = self._leadership.state.listen(self._told)
            self._cancelling = self._pending()
            self.loop.call_soon(self._look)

    def _pending(self) -> int:
        # From Python 3.11 on, and where it is backported.
        cancelling: Optional[Callable[[], int]] = getattr(self._task, "cancelling", None)
        return 0 if cancelling is None else cancelling()

    def _told(self) -> None:
        if self._leadership.state.lost is None:
            return
        try:
            self.loop.call_soon_threadsafe(self._look)
        except RuntimeError:
            pass  # The event loop is closed: the body is over.

    def _look(self) -> None:
        if self._listener is None or self._cancels or self._leadership.state.look() is None:
            return
        state = self._leadership.state
        if not self.is_contained:
            _log.error(
                "leadership of %s/%s is lost: the task that iterates over terms is cancelled; to lead again,"
                " put the body into `async with term:`",
                state.kind,
                state.election,
            )
        self._timer = self.loop.call_later(self._leadership.settings.grace, self._too_long)
        self._cancel()

    def _cancel(self) -> None:
        self._cancels += 1
        self._task.cancel("leadership lost")

    def _too_long(self) -> None:
        if self._listener is not None and not self._leadership.state.is_forked():
            self._cancel()

    def leave(self) -> None:
        """The work has ended. A cancellation of its task is ignored."""
        if self._listener is not None:
            self._leadership.state.ignore(self._listener)
            self._listener = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, error: Optional[BaseException]) -> bool:
        """The work has ended. Returns whether the error is only that it was cancelled for the loss."""
        self.leave()
        cancels, self._cancels = self._cancels, 0
        if not cancels:
            return False
        uncancel: Optional[Callable[[], int]] = getattr(self._task, "uncancel", None)
        if uncancel is not None:
            for _ in range(cancels):
                uncancel()
            # Somebody else has cancelled it, too.
            if self._pending() > self._cancelling:
                return False
        return isinstance(error, asyncio.CancelledError)


class Lead:
    """How a candidate leads an election: made by `Agent.lead`, and used by `async with`. One leadership at a time."""

    def __init__(self, agent: Agent, settings: Settings, hooks: Hooks) -> None:
        self._agent = agent
        self._settings = settings
        self._hooks = hooks
        self._entered: Optional[tuple[Leadership, _Body]] = None

    async def __aenter__(self) -> Term:
        if self._entered is not None:
            raise ConfigError("this has been entered already: call lead() for each `async with`")
        leadership = await self._agent._start(self._settings, self._hooks, Term)
        body = _Body(leadership)
        self._entered = (leadership, body)
        return Term(leadership.state)

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        assert self._entered is not None
        leadership, body = self._entered
        self._entered = None
        if leadership.state.is_forked():
            # The parent leads on.
            if error is None:
                raise Lost(LostReason.NO_TERM, FORKED)
            return
        cancelled = body.end(error)
        lost = await leadership.finish()
        if lost is not None and (error is None or cancelled):
            raise leadership.state.error(lost) from None


class LoopTerm(Term):
    """A term of `Agent.terms`. `async with term:` contains the loss: the body is cancelled, and the loop leads
    again. What is in the loop after it is not cancelled."""

    def __init__(self, state: TermState, body: _Body) -> None:
        super().__init__(state)
        self._body = body

    async def __aenter__(self) -> Term:
        self._body.begin()
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> bool:
        cancelled = self._body.end(error)
        return cancelled or (isinstance(error, Lost) and self._state.look() is not None)


class Terms:
    """Leads again and again: made by `Agent.terms`. Iterate over it with `async for`."""

    def __init__(self, agent: Agent, settings: Settings, hooks: Hooks) -> None:
        self._agent = agent
        self._settings = settings
        self._hooks = hooks
        self._led: Optional[tuple[Leadership, _Body]] = None

    def __aiter__(self) -> Terms:
        return self

    async def __anext__(self) -> LoopTerm:
        """Gives the last term up, and waits until elected again."""
        await self.aclose()
        leadership = await self._agent._start(self._settings, self._hooks, Term)
        body = _Body(leadership, is_contained=False)
        self._led = (leadership, body)
        return LoopTerm(leadership.state, body)

    async def aclose(self) -> None:
        """Gives the last term up, whose work has ended. A loop that ends does it by itself, unless the object is
        kept: then nothing shows that the loop has ended."""
        led, self._led = self._led, None
        if led is not None and not led[0].state.is_forked():
            led[1].end(None)
            await led[0].finish()

    def __del__(self) -> None:
        # The loop has ended, by `break` or an error. Agent.close() waits for the resignation.
        led, self._led = getattr(self, "_led", None), None
        if led is None or led[0].state.is_forked():
            return
        leadership, body = led
        try:
            if asyncio._get_running_loop() is body.loop:
                body.leave()
                leadership.runtime.finish(leadership)
            else:
                body.loop.call_soon_threadsafe(body.leave)
                body.loop.call_soon_threadsafe(leadership.runtime.finish, leadership)
        except RuntimeError:
            pass  # The event loop is closed: the term lapses.


class Observer:
    """Follows who leads: made by `Agent.observe`. Iterate over it for states, or over `events()` for all events.

    It connects again by itself, to whichever agent answers, and reports no state twice in a row. Of an election that
    changes while it is not read, the last state is reported. Iterating raises `Refused` if trying again does not
    help.
    """

    def __init__(self, agent: Agent, request: pb.ObserveRequest) -> None:
        self._agent = agent
        self._request = request
        self._events: collections.deque[Event] = collections.deque()
        self._changed = asyncio.Event()
        self._task: Optional[asyncio.Task[None]] = None
        self._certain = True

    @property
    def certain(self) -> bool:
        """Whether the states reported last are known to be the present ones."""
        return self._certain

    def __aiter__(self) -> AsyncIterator[State]:
        return self._states()

    async def _states(self) -> AsyncIterator[State]:
        try:
            while True:
                event = await self.next()
                if isinstance(event, State):
                    yield event
        finally:
            await self.close()

    async def events(self) -> AsyncIterator[Event]:
        """States, `Synced` once after those that were present, and `Certainty` when that changes."""
        try:
            while True:
                yield await self.next()
        finally:
            await self.close()

    async def next(self) -> Event:
        """The next event. Nothing is missed if this is cancelled."""
        if self._task is None:
            runtime = self._agent._runtime()
            follower = Follower(runtime.pool, self._request, self._agent._state, self._put)
            self._task = asyncio.get_running_loop().create_task(follower.run())
            runtime.keepers.add(self._task)
            self._task.add_done_callback(runtime.keepers.discard)
            self._task.add_done_callback(lambda _: self._changed.set())
        while not self._events:
            if self._task.done():
                if self._task.cancelled():
                    raise ConfigError("the observer or its agent is closed")
                self._task.result()
            self._changed.clear()
            await self._changed.wait()
        event = self._events.popleft()
        self._changed.set()
        return event

    def _unread(self, event: Event) -> None:
        """The receiver of the event has gone: it is the next one again."""
        self._events.appendleft(event)
        self._changed.set()

    async def _put(self, event: Event) -> None:
        while len(self._events) >= 16:
            self._changed.clear()
            await self._changed.wait()
        if isinstance(event, Certainty):
            self._certain = event.certain
        self._events.append(event)
        self._changed.set()

    async def close(self) -> None:
        """Stops to follow. Iterating to the end, by `break` too, does it by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.exception()

    async def __aenter__(self) -> Observer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Agent:
    """One or several agents of the same elections.

    `endpoints` are `host:port` or `https://host:port`, separated by commas, or a sequence of them. `http://` may be
    left out. Of a name that has several addresses, each is an endpoint. Calls go to one that answers, and at once to
    the others when it fails. Nothing is connected before the first call.

    Close it with `close()` or use `async with`. It may be used in several event loops, each with connections of its
    own, but not in a process that was forked after it was made: that raises `ConfigError`, as does any agent in a
    process that was forked from one that had used an agent.

    Of all calls: durations are seconds or timedeltas. Names of elections, kinds and candidates have 1 to 256 bytes of
    UTF-8, without control characters; those of elections and kinds are without `/`. Tokens are from 1 to 2**53 - 1.
    What is out of range or of another type is a `ConfigError`, before anything is sent. A call that one agent does not
    offer, as it is older, goes to the others.

    - `candidate`: the name that leaders campaign under unless they give another. Unless given, of this host and
      process, and random.
    - `timeout`: how long a plain call may take, with all its attempts: up to 2147483 s. Leading has deadlines of its
      own.
    - `streams`: whether leaders use streams, if the agent offers them. Without them each leadership has calls of its
      own, which proxies that know no streams in both directions let pass.
    - `ca_file`: trusts the authorities in a PEM file, and no others; the system's without it. `cert_file`,
      `key_file`: shows a certificate, for mutual TLS. The files are read again when they change, for new connections.
      `server_name`: the name that the agent's certificate has to be for, if it is not the endpoint's.
    - `token`: a bearer token. `token_file`: a file with one, of which each attempt of a call shows the present content.
      `token_from`: a function, or coroutine function, that returns one. It is called for each attempt of a call: a
      plain function on a thread of its own, and while one call of it runs, no other is begun. A token is sent to an
      endpoint without TLS only with `allow_plaintext_token`.

    Raises `ConfigError` if an endpoint is no address, or a file holds no certificate or key.
    """

    def __init__(
        self,
        endpoints: Union[str, Sequence[str]],
        *,
        candidate: Optional[str] = None,
        timeout: Duration = TIMEOUT,
        streams: bool = True,
        ca_file: Optional[Path] = None,
        cert_file: Optional[Path] = None,
        key_file: Optional[Path] = None,
        server_name: Optional[str] = None,
        token: Optional[str] = None,
        token_file: Optional[Path] = None,
        token_from: Optional[TokenSource] = None,
        allow_plaintext_token: bool = False,
    ) -> None:
        self._tokens = Tokens(token, token_file, token_from)
        tls = Tls(ca_file, cert_file, key_file, server_name)
        given = [endpoints] if isinstance(endpoints, str) else endpoints
        texts = list(given) if isinstance(given, Iterable) else [given]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"the endpoints are {endpoints!r}: give host:port, or a sequence of such strings")
        self._endpoints = [Endpoint(part.strip(), tls) for text in texts for part in text.split(",") if part.strip()]
        if not self._endpoints:
            raise ConfigError("no endpoint is given")
        for endpoint in self._endpoints:
            if self._tokens.any() and not endpoint.is_encrypted:
                if not allow_plaintext_token:
                    raise ConfigError(
                        f"the endpoint {endpoint.label} is not encrypted, and would be sent a bearer token: write"
                        f" https://{endpoint.authority}, or set allow_plaintext_token"
                    )
                _log.warning("the bearer token goes to %s over a connection that is not encrypted", endpoint.label)
        self._candidate = _name_of_process() if candidate is None else _settings.name(candidate, "the candidate")
        self._timeout = _settings.seconds(timeout, "the timeout")
        millis(self._timeout, "the timeout")
        if self._timeout <= 0:
            raise ConfigError("the timeout is 0: give a longer one")
        self._streams = streams
        self._seats = Seats()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._runtimes: dict[asyncio.AbstractEventLoop, Runtime] = {}
        self._held: dict[asyncio.AbstractEventLoop, dict[Name, _Held[Any]]] = {}
        self._jobs: dict[Name, tuple[Settings, Hooks]] = {}

    @property
    def candidate(self) -> str:
        """The name that leaders campaign under unless they give another."""
        return self._candidate

    async def __aenter__(self) -> Agent:
        self._check_process()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Gives up what `leader_only` holds when its calls have ended, and closes the connections of this event loop.
        What is led otherwise is not extended any more. The agent may be used again.

        Raises `ConfigError` if it is called by a function of `leader_only`, for whose end it would wait.
        """
        if os.getpid() != self._pid:
            return
        loop = asyncio.get_running_loop()
        held = list(self._held.get(loop, {}).values())
        _check_callers(held, asyncio.current_task())
        for each in held:
            await each.close()
        with self._lock:
            runtime = self._runtimes.pop(loop, None)
        if runtime is not None:
            await runtime.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigError(
                f"this agent was made in process {self._pid}, of which this is a fork: make an Agent of its own in"
                " each process"
            )
        _fork.check()

    def _runtime(self) -> Runtime:
        self._check_process()
        loop = asyncio.get_running_loop()
        with self._lock:
            runtime = self._runtimes.get(loop)
            if runtime is None:
                _fork.use()
                for old in [old for old in self._runtimes if old.is_closed()]:
                    del self._runtimes[old]
                pool = Pool(self._endpoints, self._tokens)
                runtime = self._runtimes[loop] = Runtime(pool, Streams(pool, self._streams))
            return runtime

    def _lead(
        self,
        election: str,
        kind: str,
        term: Duration,
        value: str,
        candidate: Optional[str],
        wait: Optional[Duration],
        grace: Duration,
        margin: Optional[Duration],
        alive: Optional[Alive],
        on_state: Optional[OnState],
        on_jeopardy: Optional[Callable[[Any], object]],
        on_lost: Optional[OnLost],
    ) -> tuple[Settings, Hooks]:
        self._check_process()
        named = self._candidate if candidate is None else candidate
        settings = Settings.of(election, kind, named, term, value, wait, grace, margin)
        for what, function in (
            ("alive", alive),
            ("on_state", on_state),
            ("on_jeopardy", on_jeopardy),
            ("on_lost", on_lost),
        ):
            _settings.function_of(function, what)
        return settings, Hooks(on_state, on_jeopardy, on_lost, alive)

    def _job(self, settings: Settings, hooks: Hooks) -> None:
        """A function of `leader_only`. Those of one election share its leadership, and how it is led."""
        name = (settings.kind, settings.election, settings.candidate)
        with self._lock:
            if self._jobs.setdefault(name, (settings, hooks)) != (settings, hooks):
                raise ConfigError(
                    f"leader_only decorates functions of {settings.kind}/{settings.election} with different arguments:"
                    " they share one leadership; give all the same"
                )

    def _held_here(self, settings: Settings, hooks: Hooks, view: type[View]) -> _Held[View]:
        """The leadership that functions of `leader_only` hold on this event loop."""
        self._check_process()
        loop = asyncio.get_running_loop()
        with self._lock:
            for old in [old for old in self._held if old.is_closed()]:
                del self._held[old]
            of_loop = self._held.setdefault(loop, {})
            name = (settings.kind, settings.election, settings.candidate)
            if name not in of_loop:
                of_loop[name] = _Held(self, settings, hooks, view)
            return of_loop[name]

    async def _start(self, settings: Settings, hooks: Hooks, view: type[BaseTerm]) -> Leadership:
        return await _leadership.start(self._runtime(), self._seats, settings, hooks, view)

    def lead(
        self,
        election: str,
        *,
        kind: str = DEFAULT_KIND,
        term: Duration = TERM,
        value: str = "",
        candidate: Optional[str] = None,
        wait: Optional[Duration] = None,
        grace: Duration = GRACE,
        margin: Optional[Duration] = None,
        alive: Optional[Alive] = None,
        on_state: Optional[OnState] = None,
        on_jeopardy: Optional[Callable[[Term], object]] = None,
        on_lost: Optional[OnLost] = None,
    ) -> Lead:
        """Leads an election: `async with agent.lead("nightly") as term:` waits until elected, extends the term while
        the body runs, and resigns after it has ended.

        When the leadership is lost, the body is cancelled, at the latest `margin` before `Term.valid_until`, and the
        `async with` raises `Lost`. If the body goes on for longer than `grace`, the term lapses, and the body is
        cancelled again.

        Durations are seconds or timedeltas.

        - `kind`: the election's kind.
        - `term`: how long the leadership lasts unless it is extended, which is done every third of it: 1 s to what the
          agent allows, 60 s unless configured.
        - `value`: public data of the leader, such as its address: at most 1024 bytes.
        - `candidate`: the name to campaign under. It has to be unique among processes: one that campaigns under the
          name of the leader takes its leadership over.
        - `wait`: how long to wait to be elected; 0: not at all; None: for ever.
        - `grace`: for how long the term is still extended after a loss was reported to the body because it could
          not be extended.
        - `margin`: how long before the end of the term the leadership counts as lost: at most half of the term. A
          tenth of the term, but at most 1 s, unless given.
        - `alive`: a plain function that is called before each extension, on a thread of its own: while it returns
          false, raises, or does not return, the term is not extended, so that an application that hangs does not lead
          on.
        - `on_state`: is called with a `Standing` whenever the candidate's standing changes; `on_jeopardy` with the
          term when it could not be extended, and it is not known whether the candidate leads; `on_lost` with a
          `LostReason` when the leadership is lost. All are plain functions, called in order by one thread of the
          process. None holds an extension up; one that does not return holds up those after it, of all agents. What
          they raise is logged; `sys.exit()` ends no program there, `signal.raise_signal` and `os._exit` do.

        Leaderships of one agent under the same names take turns: the second waits for the first.

        Raises `ConfigError` at once, and when it is entered `NotElected` after `wait`, `NotKnown` or `Unreachable` if
        no agent answered at its end, `Refused`. If the leader is cancelled while it resigns, the resignation goes on,
        and `close` waits for it.
        """
        settings, hooks = self._lead(
            election, kind, term, value, candidate, wait, grace, margin, alive, on_state, on_jeopardy, on_lost
        )
        return Lead(self, settings, hooks)

    def terms(
        self,
        election: str,
        *,
        kind: str = DEFAULT_KIND,
        term: Duration = TERM,
        value: str = "",
        candidate: Optional[str] = None,
        wait: Optional[Duration] = None,
        grace: Duration = GRACE,
        margin: Optional[Duration] = None,
        alive: Optional[Alive] = None,
        on_state: Optional[OnState] = None,
        on_jeopardy: Optional[Callable[[Term], object]] = None,
        on_lost: Optional[OnLost] = None,
    ) -> Terms:
        """Leads again and again. Arguments and errors are those of `lead`.

            async for term in agent.terms("nightly"):
                async with term:
                    await work(term)

        The candidate resigns when the loop asks for the next term, or ends. With `async with term:` a loss cancels
        the body, and the loop leads again. Without it a loss cancels the task that iterates: the work must not go on.
        Code that keeps the object beyond the loop calls its `aclose()`: nothing else shows that the loop has ended.
        """
        settings, hooks = self._lead(
            election, kind, term, value, candidate, wait, grace, margin, alive, on_state, on_jeopardy, on_lost
        )
        return Terms(self, settings, hooks)

    def leader_only(
        self,
        election: str,
        *,
        kind: str = DEFAULT_KIND,
        term: Duration = TERM,
        value: str = "",
        candidate: Optional[str] = None,
        grace: Duration = GRACE,
        margin: Optional[Duration] = None,
        alive: Optional[Alive] = None,
        on_state: Optional[OnState] = None,
        on_jeopardy: Optional[Callable[[Term], object]] = None,
        on_lost: Optional[OnLost] = None,
    ) -> LeaderOnly:
        """Decorates a coroutine function, such as a periodic job, that only the leader runs.

        A call campaigns without waiting unless this process leads already; when another leads it returns None without
        running the function. The leadership is held between calls, so that jobs that other processes start a moment
        later do not run too, until the agent is closed, which waits for calls that run, or the leadership is lost.
        All functions of an election share it, and have the same arguments here. A function gets the term if it has a
        parameter `term`, which callers do not give. Put it first, or first after `self`: type checkers know of it
        there.

        A call is cancelled when the leadership is lost, and raises `Lost`. Arguments are those of `lead`; other
        errors than `NotElected` are raised.
        """
        settings, hooks = self._lead(
            election, kind, term, value, candidate, 0, grace, margin, alive, on_state, on_jeopardy, on_lost
        )

        def decorate(function: Any, /) -> Any:
            if not inspect.iscoroutinefunction(function):
                raise ConfigError(
                    f"leader_only decorates coroutine functions, and not {function!r}: SyncAgent has it for others"
                )
            term_at = _term_at(function)
            self._job(settings, hooks)

            @functools.wraps(function)
            async def call(*args: Any, **kwargs: Any) -> Any:
                held = self._held_here(settings, hooks, Term)
                leadership = await held.begin()
                if leadership is None:
                    return None
                me = asyncio.current_task()
                held.callers.append(me)
                try:
                    body = _Body(leadership)
                    try:
                        args = _with_term(term_at, Term(leadership.state), args, kwargs)
                        result = await function(*args, **kwargs)
                    except BaseException as raised:
                        if body.end(raised):
                            raise leadership.state.error(leadership.state.look() or LostReason.NO_TERM) from None
                        raise
                    body.end(None)
                    lost = leadership.state.look()
                    if lost is not None:
                        raise leadership.state.error(lost)
                    return result
                finally:
                    held.callers.remove(me)
                    held.end()

            return _without_term(call, term_at)

        return decorate

    def observe(
        self,
        election: Optional[str] = None,
        *,
        kind: Optional[str] = None,
        prefix: Optional[str] = None,
        all_kinds: bool = False,
    ) -> Observer:
        """Follows who leads one election, those whose names begin with `prefix`, all of a kind, or those of all kinds:
        `async for state in agent.observe("nightly"):`.

        Raises `ConfigError`.
        """
        self._check_process()
        return Observer(self, observe_request(election, kind, prefix, all_kinds))

    async def verify(self, election: str, token: int, *, kind: str = DEFAULT_KIND) -> Verified:
        """Returns whether a fencing token is the present leader's: for programs that work for a leader and have no
        storage that compares tokens. A leader checks its `Term`.

        Raises `Refused`, `NotKnown`, `Unreachable`.
        """
        election, kind = _settings.election_of(election, kind)
        request = pb.VerifyTokenRequest(election=election, kind=kind, token=_settings.token_of(token))
        answer = await self._ask("Election/VerifyToken", request, pb.VerifyTokenResult)
        result = answer.value
        reason: Optional[NotCurrent] = None
        if not result.current:
            try:
                reason = NotCurrent(result.reason)
            except ValueError:
                reason = NotCurrent.OTHER
        valid_until = answer.sent + max(0, result.valid_for) * 1_000_000 if result.current else None
        return Verified(result.current, reason, state_of(result.state), valid_until)

    async def state(self, election: str, *, kind: str = DEFAULT_KIND) -> State:
        """The state of an election. One that was never held is vacant.

        Raises `Refused`, `NotKnown`, `Unreachable`.
        """
        return await self._state(*_settings.election_of(election, kind))

    async def _state(self, election: str, kind: str) -> State:
        request = pb.GetElectionRequest(election=election, kind=kind)
        answer = await self._ask("Election/GetElection", request, pb.State)
        state = state_of(answer.value)
        if state is None:
            raise NotKnown("the agent's reply names neither a leader nor a vacancy")
        return state

    async def leaders(self, *, kind: str = DEFAULT_KIND, all_kinds: bool = False) -> Leaders:
        """Lists the leaders of all held elections of a kind, or of all kinds.

        Raises `Refused`, `NotKnown`, `Unreachable`.
        """
        if all_kinds and kind != DEFAULT_KIND:
            raise ConfigError("give a kind or all_kinds")
        kind = _settings.kind_of(kind)
        request = pb.ListLeadersRequest(kind="" if all_kinds else kind, page_size=PAGE, all_kinds=bool(all_kinds))
        leaders: list[Leader] = []
        incomplete = False
        while True:
            page = (await self._ask("Election/ListLeaders", request, pb.Leaders)).value
            leaders.extend(map(leader_of, page.leaders))
            incomplete = incomplete or page.incomplete
            if not page.next_page_token:
                return Leaders(tuple(leaders), incomplete)
            request.page_token = page.next_page_token

    async def kinds(self) -> Kinds:
        """Lists the kinds that have elections.

        Raises `Refused`, `NotKnown`, `Unreachable`.
        """
        request = pb.ListKindsRequest(page_size=PAGE)
        kinds: list[str] = []
        incomplete = False
        while True:
            page = (await self._ask("Election/ListKinds", request, pb.Kinds)).value
            kinds.extend(page.kinds)
            incomplete = incomplete or page.incomplete
            if not page.next_page_token:
                return Kinds(tuple(kinds), incomplete)
            request.page_token = page.next_page_token

    async def campaign(
        self,
        election: str,
        *,
        term: Duration,
        kind: str = DEFAULT_KIND,
        candidate: Optional[str] = None,
        value: str = "",
        wait: Duration = 0,
        request_id: Optional[str] = None,
    ) -> Campaigned:
        """Campaigns once, for callers that extend on their own; `lead` does all of it. `request_id` names this attempt
        to get elected, so that it can be repeated; a random one unless given. That another candidate leads is no
        error.

        Raises `Refused`, `NotKnown`, `Unreachable`.
        """
        election, kind = _settings.election_of(election, kind)
        wait_for = _settings.seconds(wait, "the wait")
        request = pb.CampaignRequest(
            election=election,
            candidate=_settings.name(self._candidate if candidate is None else candidate, "the candidate"),
            term=millis(_settings.term_of(term), "the term"),
            kind=kind,
            value=_settings.value_of(value),
            request_id=_settings.request_id() if request_id is None else _settings.name(request_id, "the request_id"),
            wait=millis(wait_for, "the wait"),
        )
        pool = self._runtime().pool
        plan = Plan.one_by_one(self._timeout + wait_for)
        lane: Optional[WaitLane] = None
        if wait_for > 0:
            lane = WaitLane(pool)
            plan.lane = lane.lane
            plan.attempt += wait_for
        try:
            answer = await _change(pool, plan, "Election/Campaign", request, pb.CampaignResult)
        finally:
            if lane is not None:
                lane.leave()
        result = answer.value
        valid_until = answer.sent + max(0, result.valid_for) * 1_000_000 if result.elected else None
        return Campaigned(result.elected, result.leader, result.token, result.value, valid_until, result.provisional)

    async def extend(
        self,
        election: str,
        token: int,
        *,
        term: Duration,
        kind: str = DEFAULT_KIND,
        candidate: Optional[str] = None,
    ) -> int:
        """Extends a term, and returns until when its leader may act, in ns of the clock of `Term.valid_until`,
        counted from before the request was sent.

        Raises `Lost` if the candidate does not lead with this token, `Refused`, `NotKnown`, `Unreachable`.
        """
        election, kind = _settings.election_of(election, kind)
        length = _settings.term_of(term)
        request = pb.ExtendElectedTermRequest(
            election=election,
            leader=_settings.name(self._candidate if candidate is None else candidate, "the candidate"),
            term=millis(length, "the term"),
            kind=kind,
            token=_settings.token_of(token),
        )
        pool = self._runtime().pool
        plan = Plan.idempotent(self._timeout)
        answer = await _change(pool, plan, "Election/ExtendElectedTerm", request, pb.BoolValue)
        if not answer.value.value:
            raise Lost(lost_of(answer.value.reason))
        return answer.sent + promised(answer.value, length)

    async def resign(
        self, election: str, token: int, *, kind: str = DEFAULT_KIND, candidate: Optional[str] = None
    ) -> None:
        """Gives a leadership up. The work that needs it has to have ended.

        Raises `Lost` if the candidate does not lead with this token, `Refused`, `NotKnown`, `Unreachable`.
        """
        election, kind = _settings.election_of(election, kind)
        request = pb.ResignRequest(
            election=election,
            leader=_settings.name(self._candidate if candidate is None else candidate, "the candidate"),
            kind=kind,
            token=_settings.token_of(token),
        )
        pool = self._runtime().pool
        answer = await _change(pool, Plan.idempotent(self._timeout), "Election/Resign", request, pb.BoolValue)
        # If an earlier attempt got no reply, it may have done it.
        done = answer.uncertain and answer.value.reason == LostReason.NO_TERM.value
        if not answer.value.value and not done:
            raise Lost(lost_of(answer.value.reason))

    async def handover(
        self,
        election: str,
        to: str,
        *,
        term: Duration,
        kind: str = DEFAULT_KIND,
        leader: Optional[str] = None,
        token: int = 0,
    ) -> int:
        """Moves a leadership to another candidate, and returns until when that may act, in ns of the clock of
        `Term.valid_until`. That candidate gets its token by campaigning. `leader` and `token` (0: any) are
        those of the leader that hands over; give neither when the election is vacant.

        Raises `Lost` if the leader that hands over does not lead with its token, `Refused`, `NotKnown`, `Unreachable`.
        """
        election, kind = _settings.election_of(election, kind)
        length = _settings.term_of(term)
        request = pb.HandoverRequest(
            election=election,
            leader=_settings.name(to, "the next leader"),
            term=millis(length, "the term"),
            kind=kind,
            current_leader="" if leader is None else _settings.name(leader, "the leader"),
            token=_settings.token_of(token, needed=False),
        )
        pool = self._runtime().pool
        answer = await _change(pool, Plan.one_by_one(self._timeout), "Election/Handover", request, pb.BoolValue)
        if answer.value.value:
            return answer.sent + promised(answer.value, length)
        if answer.uncertain:
            # An earlier attempt may have moved it.
            raise NotKnown(f"{answer.value.reason}; an earlier attempt got no reply")
        raise Lost(lost_of(answer.value.reason))

    async def pods(self, namespace: str, *, deployment: Optional[str] = None, pod: Optional[str] = None) -> list[Pod]:
        """Lists the pods of a Kubernetes Deployment, or the siblings of a pod, those of the newest revision first.

        Raises `Refused` (also if the agent does not look pods up), `NotKnown`, `Unreachable`.
        """
        if (deployment is None) == (pod is None):
            raise ConfigError("give a deployment or a pod")
        _settings.name(namespace, "the namespace", slashes=False)
        for what, named in (("the deployment", deployment), ("the pod", pod)):
            if named is not None:
                _settings.name(named, what, slashes=False)
        request = pb.GetPodsRequest(namespace=namespace, deployment=deployment or "", pod_name=pod or "")
        answer = await self._ask("Election/GetPods", request, pb.Pods)
        return [pod_of(item) for item in answer.value.items]

    async def _ask(self, method: str, request: Message, answer: type[Answered]) -> Answer[Answered]:
        """Sends a request that changes nothing."""
        try:
            return await self._runtime().pool.call(Plan.idempotent(self._timeout), method, request, answer)
        except Failure as failure:
            raise failure.of_question() from None


async def _change(pool: Pool, plan: Plan, method: str, request: Message, answer: type[Answered]) -> Answer[Answered]:
    try:
        return await pool.call(plan, method, request, answer)
    except Failure as failure:
        raise failure.of_change() from None


class _Held(Generic[View]):
    """A leadership that is held between the calls of a function."""

    def __init__(self, agent: Agent, settings: Settings, hooks: Hooks, view: type[View]) -> None:
        self._agent = agent
        self._settings = settings
        self._hooks = hooks
        self._view = view
        self._lock = asyncio.Lock()
        self._leadership: Optional[Leadership] = None
        self._running = 0
        self.callers: list[object] = []
        """The tasks, or the numbers of the threads, that run the function."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def begin(self) -> Optional[Leadership]:
        """The leadership, for a call that runs; None: another leads."""
        async with self._lock:
            held = self._leadership
            if held is not None and held.state.look() is not None:
                if self._running:
                    # The calls under it have to end first.
                    raise held.state.error(held.state.look() or LostReason.NO_TERM)
                self._leadership = None
                await held.finish()
            if self._leadership is None:
                try:
                    self._leadership = await self._agent._start(self._settings, self._hooks, self._view)
                except NotElected as error:
                    _log.debug("%s/%s: %s", self._settings.kind, self._settings.election, error)
                    return None
            self._running += 1
            self._leadership.works = True
            self._idle.clear()
            return self._leadership

    def end(self) -> None:
        """A call has ended."""
        self._running -= 1
        if self._running == 0:
            if self._leadership is not None:
                self._leadership.works = False
            self._idle.set()

    async def close(self) -> None:
        """Gives it up when no call runs any more."""
        await self._idle.wait()
        async with self._lock:
            held, self._leadership = self._leadership, None
            if held is not None:
                await held.finish()


def _check_callers(held: Sequence[_Held[Any]], me: object) -> None:
    """Raises `ConfigError` to a function of `leader_only` that closes its agent: that would wait for the function."""
    if any(me in each.callers for each in held):
        raise ConfigError("a function of leader_only cannot close its agent, which waits for its end: close it outside")


def _term_at(function: Callable[..., object]) -> Optional[float]:
    """Where a function has a parameter for the term: behind how many others that callers may give by position. None:
    it has none. Raises `ConfigError` if it cannot be given one."""
    if not callable(function):
        raise ConfigError(f"leader_only decorates functions, and not {function!r}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        # A function of C.
        return None
    for at, each in enumerate(parameters):
        if each.name == "term" and each.kind is each.POSITIONAL_OR_KEYWORD:
            return at
        if each.name == "term" and each.kind is each.KEYWORD_ONLY:
            return math.inf
        if each.name == "term" and each.kind is each.POSITIONAL_ONLY:
            raise ConfigError(f"the parameter term of {function!r} is positional only: the term is given by its name")
    return None


def _with_term(at: Optional[float], term: BaseTerm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call, with the term."""
    if at is None:
        return args
    if len(args) > at:
        return (*args[: int(at)], term, *args[int(at) :])
    kwargs["term"] = term
    return args


Decorated = TypeVar("Decorated", bound=Callable[..., object])


def _without_term(call: Decorated, at: Optional[float]) -> Decorated:
    """Inspection of a decorated function does not show the parameter that its callers do not give."""
    if at is not None:
        signature = inspect.signature(call)
        parameters = [each for name, each in signature.parameters.items() if name != "term"]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call


def observe_request(
    election: Optional[str], kind: Optional[str], prefix: Optional[str], all_kinds: bool
) -> pb.ObserveRequest:
    given = sum((election is not None, prefix is not None, bool(all_kinds)))
    if given > 1:
        raise ConfigError("give one of election, prefix and all_kinds")
    if all_kinds and kind is not None:
        raise ConfigError("give a kind or all_kinds")
    if given == 0 and kind is None:
        raise ConfigError("say what to observe: an election, a prefix, a kind or all_kinds")
    of = DEFAULT_KIND if kind is None else _settings.name(kind, "the kind", slashes=False)
    if all_kinds:
        return pb.ObserveRequest(all_kinds=True, heartbeat=HEARTBEAT_MS)
    if election is not None:
        _settings.name(election, "the election", slashes=False)
        return pb.ObserveRequest(kind=of, election=election, heartbeat=HEARTBEAT_MS)
    if prefix is not None:
        _settings.name(prefix, "the prefix", slashes=False)
        return pb.ObserveRequest(kind=of, prefix=prefix, heartbeat=HEARTBEAT_MS)
    return pb.ObserveRequest(kind=of, heartbeat=HEARTBEAT_MS)


def _name_of_process() -> str:
    """The host's name, the process's number, and a random part that distinguishes agents of one process."""
    # Of a host's name, at most what a candidate's name has room for.
    host = "".join(char for char in socket.gethostname() if char.isprintable())[:48] or "host"
    return f"{host}-{os.getpid()}-{_settings.request_id()[:8]}"
