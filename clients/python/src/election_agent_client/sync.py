"""The agent, as programs without asyncio see it.

It has the same calls as `Agent`, and the same machinery: an event loop on one thread of the process extends terms
while the program's own threads work.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import inspect
import logging
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union

from . import _clock, _threads
from ._credentials import Path, TokenSource
from ._hooks import Alive, OnLost, OnState
from ._leadership import Leadership
from ._settings import DEFAULT_KIND, GRACE, TERM, Duration, limit, seconds
from .agent import TIMEOUT, Agent, Observer, _check_callers, _Held, _term_at, _with_term, _without_term
from .errors import ConfigError, Lost, LostReason
from .term import FORKED, BaseTerm
from .types import Campaigned, Event, Kinds, Leaders, Pod, State, Verified

if TYPE_CHECKING:
    from ._decorators import SyncLeaderOnly

_log = logging.getLogger("election_agent_client")

Result = TypeVar("Result")


class _Background:
    """The thread with the event loop, as long as an agent needs it."""

    def __init__(self) -> None:
        # A handler of a signal may use an agent.
        self._lock = threading.RLock()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._thread: Optional[threading.Thread] = None
        self._users: set[int] = set()

    def loop(self, user: int) -> asyncio.AbstractEventLoop:
        with self._lock:
            self._users.add(user)
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(loop,), name="election-loop", daemon=True)
                self._thread.start()
            return self._loop

    def submit(
        self, work: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop
    ) -> concurrent.futures.Future[Result]:
        """Has the thread run a coroutine. Raises `ConfigError` if the loop is not the thread's any more."""
        with self._lock:
            # What is put into the loop before it is stopped runs, or is cancelled.
            if loop is self._loop:
                return asyncio.run_coroutine_threadsafe(work, loop)
        work.close()
        raise ConfigError("the agent was closed meanwhile")

    def call(self, function: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
        """Has the thread call a function, if it still runs the loop."""
        with self._lock:
            if loop is self._loop:
                loop.call_soon_threadsafe(function)

    def runs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the loop is the thread's."""
        return loop is self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(_report)
        try:
            loop.run_forever()
        finally:
            # Tasks that they started end, too.
            while tasks := asyncio.all_tasks(loop):
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.wait(tasks))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def leave(self, user: int) -> None:
        """The thread ends with its last user."""
        with self._lock:
            self._users.discard(user)
            if self._users or self._loop is None:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join()

    def end(self) -> None:
        """The interpreter ends: a thread that runs on would find half of it gone."""
        for user in list(self._users):
            self.leave(user)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Older releases of gRPC wake all event loops of a process for each event, and one of them finds it.
    if isinstance(context.get("exception"), BlockingIOError) and "PollerCompletionQueue" in repr(context.get("handle")):
        return
    loop.default_exception_handler(context)


_BACKGROUND = _Background()


def _result(future: concurrent.futures.Future[Result]) -> Result:
    """What a coroutine returns."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise ConfigError("the agent was closed meanwhile") from None
    except BaseException:
        # A signal's exception, if the work goes on.
        future.cancel()
        raise


def _after_fork() -> None:
    global _BACKGROUND
    _BACKGROUND = _Background()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    _BACKGROUND.end()


class SyncTerm(BaseTerm):
    """A term of leadership, as the work of the leader sees it.

    The clock decides: `check` and `remaining` read it each time, whatever the network or other threads do. A term
    that was lost stays lost. Python cannot stop work that does not check: work that takes longer than a moment calls
    `check`, or pauses with `sleep`.
    """

    def wait_lost(self, timeout: Optional[Duration] = None) -> Optional[LostReason]:
        """Waits until the leadership is lost. None: it was not within the timeout."""
        self._wait(timeout, lambda: False)
        return self._state.look()

    def wait_renewed(self, timeout: Optional[Duration] = None) -> Optional[int]:
        """Waits until `valid_until` has moved since this was called last on this object, and returns it. None: it has
        not within the timeout.

        Raises `Lost` when the leadership is lost.
        """
        moved = self._wait(timeout, lambda: self._state.valid_until > self._seen)
        self.check()
        if not moved:
            return None
        self._seen = self._state.valid_until
        return self._seen

    def sleep(self, duration: Duration) -> None:
        """Pauses the work. Raises `Lost` when the leadership is lost meanwhile."""
        self._wait(seconds(duration, "the duration"), lambda: False)
        self.check()

    def _wait(self, timeout: Optional[Duration], done: Callable[[], bool]) -> bool:
        """Waits until something is true, or the leadership lost."""
        within = limit(timeout, "the timeout")
        until = None if within is None else _clock.now_ns() + _clock.nanos(within)
        while self._state.look() is None:
            if done():
                return True
            left = None if until is None else _clock.seconds_until(until)
            if left == 0:
                return False
            with self._state.changed:
                if self._state.lost is None and not done():
                    # Whatever happens to the timer's thread, the clock is checked.
                    self._state.changed.wait(0.5 if left is None else min(0.5, left))
        return done()


class SyncLead:
    """How a candidate leads an election: made by `SyncAgent.lead`, and used by `with`. One leadership at a time."""

    def __init__(self, agent: SyncAgent, start: Callable[[], Coroutine[Any, Any, Leadership]]) -> None:
        self._agent = agent
        self._start = start
        self._leadership: Optional[Leadership] = None

    def __enter__(self) -> SyncTerm:
        if self._leadership is not None:
            raise ConfigError("this has been entered already: call lead() for each `with`")
        self._leadership = self._agent._elect(self._start)
        return SyncTerm(self._leadership.state)

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        assert self._leadership is not None
        leadership, self._leadership = self._leadership, None
        if leadership.state.is_forked():
            # The parent leads on.
            if error is None:
                raise Lost(LostReason.NO_TERM, FORKED)
            return
        lost = self._agent._finish(leadership)
        if lost is not None and error is None:
            raise leadership.state.error(lost)


class SyncLoopTerm(SyncTerm):
    """A term of `SyncAgent.terms`. `with term:` contains a `Lost` that its body raises: the loop leads again."""

    def __enter__(self) -> SyncTerm:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> bool:
        return isinstance(error, Lost) and self._state.look() is not None


class SyncObserver:
    """Follows who leads: made by `SyncAgent.observe`. Iterate over it for states, or over `events()` for all
    events.

    It connects again by itself, to whichever agent answers, and reports no state twice in a row. Of an election that
    changes while it is not read, the last state is reported. Iterating raises `Refused` if trying again does not
    help. Close it, or use `with`.
    """

    def __init__(self, agent: SyncAgent, observer: Callable[[], Observer]) -> None:
        self._agent = agent

        async def make() -> tuple[Observer, asyncio.AbstractEventLoop]:
            return observer(), asyncio.get_running_loop()

        self._observer, self._loop = agent._run(make())

    @property
    def certain(self) -> bool:
        """Whether the states reported last are known to be the present ones."""
        return self._observer.certain

    def __iter__(self) -> Iterator[State]:
        for event in self.events():
            if isinstance(event, State):
                yield event

    def events(self) -> Iterator[Event]:
        """States, `Synced` once after those that were present, and `Certainty` when that changes."""
        try:
            while True:
                event = self.next()
                assert event is not None
                yield event
        finally:
            self.close()

    def next(self, timeout: Optional[Duration] = None) -> Optional[Event]:
        """The next event. None: there was none within the timeout."""
        within = limit(timeout, "the timeout")

        async def next_within() -> Optional[Event]:
            task = asyncio.ensure_future(self._observer.next())
            try:
                await asyncio.wait({task}, timeout=within)
            except asyncio.CancelledError:
                if task.done() and not task.cancelled() and task.exception() is None:
                    self._observer._unread(task.result())
                raise
            finally:
                if not task.done():
                    task.cancel()
            return None if not task.done() or task.cancelled() else task.result()

        def undo(event: Optional[Event]) -> None:
            if event is not None:
                self._observer._unread(event)

        return self._agent._take(next_within, undo, self._loop)

    def close(self) -> None:
        """Stops to follow."""
        # With the agent, and in a child, it has stopped.
        if os.getpid() == self._agent._agent._pid and _BACKGROUND.runs(self._loop):
            self._agent._run(self._observer.close(), self._loop)

    def __enter__(self) -> SyncObserver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _returns_work(function: Callable[..., object]) -> bool:
    """Whether what a function returns does its work, after the call."""
    return (
        inspect.iscoroutinefunction(function)
        or inspect.iscoroutinefunction(type(function).__call__)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    )


def _end(begun: Optional[tuple[_Held[SyncTerm], Leadership]]) -> None:
    if begun is not None:
        begun[0].end()


class SyncAgent:
    """One or several agents of the same elections, for programs without asyncio. Arguments and calls are those of
    `Agent`.

    All threads may use it, but not a process that was forked after it was made: that raises `ConfigError`. Close it
    with `close()` or use `with`.
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
        self._agent = Agent(
            endpoints,
            candidate=candidate,
            timeout=timeout,
            streams=streams,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            server_name=server_name,
            token=token,
            token_file=token_file,
            token_from=token_from,
            allow_plaintext_token=allow_plaintext_token,
        )

    @property
    def candidate(self) -> str:
        """The name that leaders campaign under unless they give another."""
        return self._agent.candidate

    def __enter__(self) -> SyncAgent:
        self._agent._check_process()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives up what `leader_only` holds when its calls have ended, and closes the connections. What is led
        otherwise lapses. The agent may be used again.

        Raises `ConfigError` if it is called by a function of `leader_only`, for whose end it would wait.
        """
        if os.getpid() != self._agent._pid:
            return
        for held in list(self._agent._held.values()):
            _check_callers(list(held.values()), threading.get_ident())
        self._run(self._agent.close())
        _BACKGROUND.leave(id(self))

    def _submit(
        self, work: Coroutine[Any, Any, Result], on: Optional[asyncio.AbstractEventLoop] = None
    ) -> concurrent.futures.Future[Result]:
        """Has the thread of the event loop run a coroutine: of the present loop, or of the one given."""
        try:
            self._agent._check_process()
            loop = _BACKGROUND.loop(id(self)) if on is None else on
            try:
                here: Optional[asyncio.AbstractEventLoop] = asyncio.get_running_loop()
            except RuntimeError:
                here = None
            if here is loop:
                raise ConfigError("this would wait for itself: use Agent on an event loop")
        except BaseException:
            work.close()
            raise
        return _BACKGROUND.submit(work, loop)

    def _run(self, work: Coroutine[Any, Any, Result], on: Optional[asyncio.AbstractEventLoop] = None) -> Result:
        """Runs a coroutine on the thread of the event loop."""
        return _result(self._submit(work, on))

    def _finish(self, leadership: Leadership) -> Optional[LostReason]:
        """The work has ended: gives the leadership up. Returns why it was lost before."""
        try:
            future = _BACKGROUND.submit(leadership.finish(), leadership.loop)
        except ConfigError:
            _log.warning("the agent was closed under a leadership: its term lapses")
            return leadership.state.look()
        try:
            # If a signal interrupts this, the loop goes on with it.
            return future.result()
        except concurrent.futures.CancelledError:
            # The agent was closed meanwhile: the term lapses.
            return leadership.state.look()

    def _take(
        self,
        work: Callable[[], Coroutine[Any, Any, Result]],
        undo: Callable[[Result], object],
        on: Optional[asyncio.AbstractEventLoop] = None,
    ) -> Result:
        """Runs a coroutine whose result the caller has to take over. If a signal interrupts the thread that waits for
        it, also at the last moment, the result is undone, on the event loop."""
        self._agent._check_process()
        loop = _BACKGROUND.loop(id(self)) if on is None else on
        lock = threading.Lock()
        given_up = False
        results: list[Result] = []

        async def hand_over() -> Result:
            result = await work()
            with lock:
                if not given_up:
                    results.append(result)
                    return result
            undo(result)
            raise asyncio.CancelledError

        future = self._submit(hand_over(), loop)
        try:
            return _result(future)
        except BaseException:
            with lock:
                given_up = True
            if results:
                _BACKGROUND.call(lambda: undo(results[0]), loop)
            raise

    def _elect(self, start: Callable[[], Coroutine[Any, Any, Leadership]]) -> Leadership:
        """Waits until elected."""
        return self._take(start, lambda leadership: leadership.runtime.finish(leadership))

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
        on_jeopardy: Optional[Callable[[SyncTerm], object]] = None,
        on_lost: Optional[OnLost] = None,
    ) -> SyncLead:
        """Leads an election: `with agent.lead("nightly") as term:` waits until elected, extends the term while the
        body runs, and resigns after it has ended. Arguments are those of `Agent.lead`.

        When the leadership is lost, `SyncTerm.check` and `SyncTerm.sleep` raise `Lost`, and so does the `with` if its
        body ends without an error. A body that does not check goes on: Python cannot stop a thread. If it goes on for
        longer than `grace`, the term lapses. With `alive` the term is extended only while the application says that
        it works.
        """
        settings, hooks = self._agent._lead(
            election, kind, term, value, candidate, wait, grace, margin, alive, on_state, on_jeopardy, on_lost
        )
        return SyncLead(self, lambda: self._agent._start(settings, hooks, SyncTerm))

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
        on_jeopardy: Optional[Callable[[SyncTerm], object]] = None,
        on_lost: Optional[OnLost] = None,
    ) -> Iterator[SyncLoopTerm]:
        """Leads again and again. Arguments and errors are those of `lead`.

            for term in agent.terms("nightly"):
                with term:
                    work(term)

        The candidate resigns when the loop asks for the next term, or ends. With `with term:` a `Lost` that the body
        raises ends the body, and not the loop.
        """
        settings, hooks = self._agent._lead(
            election, kind, term, value, candidate, wait, grace, margin, alive, on_state, on_jeopardy, on_lost
        )

        def terms() -> Iterator[SyncLoopTerm]:
            while True:
                leadership = self._elect(lambda: self._agent._start(settings, hooks, SyncTerm))
                try:
                    yield SyncLoopTerm(leadership.state)
                finally:
                    if not leadership.state.is_forked():
                        self._finish(leadership)

        return terms()

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
        on_jeopardy: Optional[Callable[[SyncTerm], object]] = None,
        on_lost: Optional[OnLost] = None,
    ) -> SyncLeaderOnly:
        """Decorates a function, such as a periodic job, that only the leader runs.

        A call campaigns without waiting unless this process leads already; when another leads it returns None without
        running the function. The leadership is held between calls, so that jobs that other processes start a moment
        later do not run too, until the agent is closed, which waits for calls that run, or the leadership is lost.
        All functions of an election share it, and have the same arguments here. A function gets the term if it has a
        parameter `term`, which callers do not give. Put it first, or first after `self`: type checkers know of it
        there.

        A call raises `Lost` if the leadership was lost before the function had ended. Arguments are those of `lead`;
        other errors than `NotElected` are raised.
        """
        settings, hooks = self._agent._lead(
            election, kind, term, value, candidate, 0, grace, margin, alive, on_state, on_jeopardy, on_lost
        )

        def decorate(function: Any, /) -> Any:
            if _returns_work(function):
                raise ConfigError(
                    f"leader_only of SyncAgent decorates plain functions, and not {function!r}: Agent has it for"
                    " coroutine functions"
                )
            term_at = _term_at(function)
            self._agent._job(settings, hooks)

            async def begin() -> Optional[tuple[_Held[SyncTerm], Leadership]]:
                held = self._agent._held_here(settings, hooks, SyncTerm)
                leadership = await held.begin()
                return None if leadership is None else (held, leadership)

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                begun = self._take(begin, _end)
                if begun is None:
                    return None
                held, leadership = begun
                me = threading.get_ident()
                held.callers.append(me)
                try:
                    args = _with_term(term_at, SyncTerm(leadership.state), args, kwargs)
                    result = function(*args, **kwargs)
                    why = _threads.awaitable(result)
                    if why is not None:
                        raise ConfigError(f"{function!r} is no plain function: {why}")
                    lost = leadership.state.look()
                    if lost is not None:
                        raise leadership.state.error(lost)
                    return result
                finally:
                    held.callers.remove(me)
                    if not leadership.state.is_forked():
                        _BACKGROUND.call(held.end, leadership.loop)

            return _without_term(call, term_at)

        return decorate

    def observe(
        self,
        election: Optional[str] = None,
        *,
        kind: Optional[str] = None,
        prefix: Optional[str] = None,
        all_kinds: bool = False,
    ) -> SyncObserver:
        """Follows who leads, as `Agent.observe` does: `for state in agent.observe("nightly"):`."""
        return SyncObserver(self, lambda: self._agent.observe(election, kind=kind, prefix=prefix, all_kinds=all_kinds))

    def verify(self, election: str, token: int, *, kind: str = DEFAULT_KIND) -> Verified:
        """Returns whether a fencing token is the present leader's, as `Agent.verify` does."""
        return self._run(self._agent.verify(election, token, kind=kind))

    def state(self, election: str, *, kind: str = DEFAULT_KIND) -> State:
        """The state of an election, as of `Agent.state`."""
        return self._run(self._agent.state(election, kind=kind))

    def leaders(self, *, kind: str = DEFAULT_KIND, all_kinds: bool = False) -> Leaders:
        """Lists leaders, as `Agent.leaders` does."""
        return self._run(self._agent.leaders(kind=kind, all_kinds=all_kinds))

    def kinds(self) -> Kinds:
        """Lists the kinds that have elections, as `Agent.kinds` does."""
        return self._run(self._agent.kinds())

    def campaign(
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
        """Campaigns once, as `Agent.campaign` does."""
        return self._run(
            self._agent.campaign(
                election,
                term=term,
                kind=kind,
                candidate=candidate,
                value=value,
                wait=wait,
                request_id=request_id,
            )
        )

    def extend(
        self,
        election: str,
        token: int,
        *,
        term: Duration,
        kind: str = DEFAULT_KIND,
        candidate: Optional[str] = None,
    ) -> int:
        """Extends a term, as `Agent.extend` does."""
        return self._run(self._agent.extend(election, token, term=term, kind=kind, candidate=candidate))

    def resign(self, election: str, token: int, *, kind: str = DEFAULT_KIND, candidate: Optional[str] = None) -> None:
        """Gives a leadership up, as `Agent.resign` does."""
        self._run(self._agent.resign(election, token, kind=kind, candidate=candidate))

    def handover(
        self,
        election: str,
        to: str,
        *,
        term: Duration,
        kind: str = DEFAULT_KIND,
        leader: Optional[str] = None,
        token: int = 0,
    ) -> int:
        """Moves a leadership to another candidate, as `Agent.handover` does."""
        return self._run(self._agent.handover(election, to, term=term, kind=kind, leader=leader, token=token))

    def pods(self, namespace: str, *, deployment: Optional[str] = None, pod: Optional[str] = None) -> list[Pod]:
        """Lists pods, as `Agent.pods` does."""
        return self._run(self._agent.pods(namespace, deployment=deployment, pod=pod))
