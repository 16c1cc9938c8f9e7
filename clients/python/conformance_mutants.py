"""Faults that the library is made to have, by name: clients/conformance/src/mutants.rs says which check finds each.

Each replaces a part of the library while the conformance program runs. The library itself has no switch for them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any, Callable, Optional

from election_agent_client import (
    _clock,
    _hooks,
    _leadership,
    _pool,
    _session,
    _streams,
    _unary,
    agent,
    errors,
    sync,
    term,
    types,
)

LostReason = errors.LostReason


def counts_from_receipt() -> None:
    """Counts `valid_for` from when the answer arrives."""

    def sent(self: _session.Session, ping: int) -> _session.Sent:
        return _session.Sent.now(self._loop)

    _session.Session.sent = sent
    attempt = _pool.Pool._attempt

    async def late(self: _pool.Pool, *arguments: Any) -> Any:
        answer = await attempt(self, *arguments)
        answer.sent = _clock.now_ns()
        return answer

    _pool.Pool._attempt = late


def terms_are_twice_as_long() -> None:
    """Takes a term for twice as long as it was promised."""
    start, extend = term.TermState.__init__, term.TermState.extend

    def twice(until: int) -> int:
        return until + max(0, until - _clock.now_ns())

    def longer(self: term.TermState, *arguments: Any) -> None:
        names = list(arguments)
        names[4] = twice(names[4])
        start(self, *names)

    term.TermState.__init__ = longer
    term.TermState.extend = lambda self, until, anchor: extend(self, twice(until), anchor)


def never_reports_loss() -> None:
    """Does not report losses."""
    _hooks.Hooks.lost = lambda self, why: None


def monotonic_clock() -> None:
    """Counts by a clock that stops during suspension."""
    _clock.now_ns = time.monotonic_ns


def wall_clock() -> None:
    """Counts by the wall clock."""
    _clock.now_ns = time.time_ns


def resigns_under_the_body() -> None:
    """Resigns when the loss is noticed, under a body that goes on."""
    keep = _leadership.Leadership._keep

    async def resigns(self: _leadership.Leadership) -> None:
        async def resign() -> None:
            await term.wait_lost(self.state)
            await _unary.resign(self.runtime.pool, self.settings, self.state.token, True)
            self._hooks.state(_hooks.Resigned())

        task = asyncio.ensure_future(resign())
        await keep(self)
        await task

    _leadership.Leadership._keep = resigns


def never_resigns() -> None:
    """Lets the term lapse instead."""

    async def finish(self: _leadership.Leadership) -> Optional[LostReason]:
        led = self.state.look()
        await self.lapse()
        return led

    _leadership.Leadership.finish = finish


def extends_by_name() -> None:
    """Extends by name. Only calls can: streams extend what they lead."""
    extend = _unary.extend
    _streams.Streams.are_offered = lambda self: False

    async def by_name(pool: Any, settings: Any, token: int, within: float) -> Any:
        return await extend(pool, settings, 0, within)

    _unary.extend = by_name


def resigns_by_name() -> None:
    """Gives up by name, also what another process of this name leads."""
    resign = _unary.resign

    async def leave(self: _streams.Joined) -> None:
        self.stream._remove(self)
        raise _streams.NotJoined

    async def by_name(pool: Any, settings: Any, token: int, uncertain: bool) -> None:
        await resign(pool, settings, 0, uncertain)

    _streams.Joined.leave = leave
    _unary.resign = by_name


def never_extends() -> None:
    """Does not extend terms."""
    _streams.Stream._ping_due = lambda self: None

    async def keep(*_: Any) -> None:
        await asyncio.Event().wait()

    _unary.keep = keep


def new_request_id() -> None:
    """Names each repetition of an attempt anew."""
    join = _streams.Joined.join

    def renamed(self: _streams.Joined) -> Any:
        self.request_id = _streams.request_id()
        return join(self)

    _streams.Joined.join = renamed


def one_request_id() -> None:
    """Names all attempts alike."""
    _unary.request_id = lambda: "always the same"
    _streams.request_id = _unary.request_id


def no_failover() -> None:
    """Uses the first agent only."""
    routes = _pool.Pool.routes

    async def first(self: _pool.Pool) -> Any:
        found, wrong = await routes(self)
        return [route for route in found if route.endpoint == 0][:1], wrong

    _pool.Pool.routes = first


def stream_end_is_loss() -> None:
    """Takes the end of a stream for a loss."""
    broken, goodbye = _streams.Stream._broken, _streams.Stream._goodbye

    def lose(self: _streams.Stream) -> None:
        for joined in list(self.elections.values()):
            if joined.term is not None:
                joined.term.lose(LostReason.NO_TERM)

    def ended(self: _streams.Stream, session: Any, why: str) -> None:
        if session is self._session:
            lose(self)
        broken(self, session, why)

    def ends(self: _streams.Stream, message: Any) -> None:
        lose(self)
        goodbye(self, message)

    _streams.Stream._broken = ended
    _streams.Stream._goodbye = ends


def jeopardy_is_loss() -> None:
    """Takes an extension whose outcome is not known for a loss."""
    term.TermState.jeopardize = lambda self, reason: self.lose(LostReason.NO_TERM)


def no_jeopardy() -> None:
    """Does not report that a term could not be extended."""
    term.TermState.jeopardize = lambda self, reason: None


def loses_all() -> None:
    """Takes the loss of one election for the loss of all."""
    ended = _streams.Stream._ended_election

    def all_ended(self: _streams.Stream, joined: _streams.Joined, why: Optional[LostReason]) -> None:
        others = list(self.elections.values()) if why is not None else []
        ended(self, joined, why)
        for other in others:
            if other.term is not None:
                other.term.lose(why or LostReason.NO_TERM)

    _streams.Stream._ended_election = all_ended


def ignores_alive() -> None:
    """Extends the term of an application that is not alive."""
    from election_agent_client import _alive

    async def ask(self: Any, within: float) -> None:
        return None

    _alive.AliveCheck.ask = ask


def no_grace() -> None:
    """Does not extend the term for a body that goes on after the loss."""

    async def over(state: term.TermState, grace: float) -> None:
        await term.wait_lost(state)

    _unary.grace_over = over


def endless_grace() -> None:
    """Extends the term after the grace."""

    async def over(state: term.TermState, grace: float) -> None:
        await asyncio.Event().wait()

    _unary.grace_over = over
    agent._Body._too_long = lambda self: None


def streams_only() -> None:
    """Does not lead by calls if the agent has no streams."""

    async def campaign(*_: Any) -> Any:
        raise errors.NotKnown("there is no stream")

    _unary.campaign = campaign


def refusal_is_loss() -> None:
    """Takes a refusal for a loss."""
    extend = _unary.extend

    async def refused(*arguments: Any) -> Any:
        extended = await extend(*arguments)
        is_refused = isinstance(extended, _pool.Failure) and extended.refusal is not None
        return LostReason.NO_TERM if is_refused else extended

    _unary.extend = refused


def timer_of_the_runtime() -> None:
    """Looks at no clock, but at a flag that a timer of the event loop sets."""
    look = term.TermState.look

    def flag(self: term.TermState) -> Optional[LostReason]:
        return self.lost

    start = _leadership.Leadership.__init__

    def timed(self: _leadership.Leadership, *arguments: Any) -> None:
        start(self, *arguments)

        def tick() -> None:
            if look(self.state) is None:
                asyncio.get_running_loop().call_later(0.05, tick)

        asyncio.get_running_loop().call_later(0.05, tick)

    term.TermState.look = flag
    term.TermState.due = lambda self: None
    _leadership.Leadership.__init__ = timed


def unknown_is_denied() -> None:
    """Reports an election that could not be decided as lost to another."""
    _pool.Failure.of_change = lambda self: errors.NotElected()


def believes_tokens() -> None:
    """Takes each token for the present one."""
    ask = agent.Agent._ask

    async def believes(self: agent.Agent, method: str, request: Any, answer: Any) -> Any:
        answered: Any = await ask(self, method, request, answer)
        if method == "Election/VerifyToken":
            answered.value.current = True
        return answered

    agent.Agent._ask = believes


def always_certain() -> None:
    """Does not report that states are uncertain."""
    put = agent.Observer._put

    async def certain(self: agent.Observer, event: Any) -> None:
        if not isinstance(event, agent.Certainty):
            await put(self, event)

    agent.Observer._put = certain


def guesses_vacancies() -> None:
    """Reports a vacancy when states are uncertain."""
    put = agent.Observer._put
    last: dict[int, types.State] = {}

    async def guesses(self: agent.Observer, event: Any) -> None:
        if isinstance(event, types.State):
            last[id(self)] = event
        await put(self, event)
        state = last.get(id(self))
        if isinstance(event, types.Certainty) and not event.certain and state is not None:
            await put(self, dataclasses.replace(state, leader=None, cause=types.Cause.EXPIRY))

    agent.Observer._put = guesses


def forgets_causes() -> None:
    """Does not report why a state is told."""
    put = agent.Observer._put

    async def forgets(self: agent.Observer, event: Any) -> None:
        if isinstance(event, types.State):
            event = dataclasses.replace(event, cause=types.Cause.PRESENT)
        await put(self, event)

    agent.Observer._put = forgets


def does_not_wait() -> None:
    """Does not wait for the election to become vacant."""

    def at_once(twin: Any) -> None:
        lead = twin.lead
        twin.lead = lambda self, election, **arguments: lead(self, election, **{**arguments, "wait": 0})

    at_once(agent.Agent)
    at_once(sync.SyncAgent)


def ignores_denial() -> None:
    """Takes a denial for a failure."""
    lose = term.TermState.lose

    def ignores(self: term.TermState, why: LostReason) -> None:
        if why is not LostReason.STALE_TOKEN:
            lose(self, why)

    term.TermState.lose = ignores


def extends_after_resign() -> None:
    """Goes on extending after it has resigned."""
    finish = _leadership.Leadership.finish

    async def goes_on(self: _leadership.Leadership) -> None:
        while True:
            await asyncio.sleep(0.3)
            await _unary.extend(self.runtime.pool, self.settings, self.state.token, 1.0)

    async def finishes(self: _leadership.Leadership) -> Optional[LostReason]:
        led = await finish(self)
        going_on.append(asyncio.ensure_future(goes_on(self)))
        return led

    going_on: list[Any] = []
    _leadership.Leadership.finish = finishes


MUTANTS: dict[str, Callable[[], None]] = {
    "".join(part.capitalize() for part in fault.__name__.split("_")): fault
    for fault in (
        counts_from_receipt,
        terms_are_twice_as_long,
        never_reports_loss,
        monotonic_clock,
        wall_clock,
        resigns_under_the_body,
        never_resigns,
        extends_by_name,
        resigns_by_name,
        never_extends,
        new_request_id,
        one_request_id,
        no_failover,
        stream_end_is_loss,
        jeopardy_is_loss,
        no_jeopardy,
        loses_all,
        ignores_alive,
        no_grace,
        endless_grace,
        streams_only,
        refusal_is_loss,
        timer_of_the_runtime,
        unknown_is_denied,
        believes_tokens,
        always_certain,
        guesses_vacancies,
        forgets_causes,
        does_not_wait,
        ignores_denial,
        extends_after_resign,
    )
}


def apply(name: str) -> None:
    """Makes the fault."""
    if name not in MUTANTS:
        raise SystemExit(f"there is no mutant {name}: {', '.join(MUTANTS)}")
    MUTANTS[name]()


__all__ = ["MUTANTS", "apply"]
