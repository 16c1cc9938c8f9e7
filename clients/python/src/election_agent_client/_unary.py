"""Leading by calls: campaigns that wait, and an extension every third of the term."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Optional, Union

from . import _clock
from ._alive import AliveCheck, NotAlive
from ._hooks import ExtensionRefused, Hooks, Standing, Unanswered, Waiting
from ._pool import Answer, Failure, Plan, Pool, WaitLane
from ._proto import election_agent_pb2 as pb
from ._session import clamp
from ._settings import Patience, Settings, jittered, millis, request_id
from .errors import Code, Lost, LostReason, NotElected, lost_of
from .term import TermState, wait_lost

_log = logging.getLogger("election_agent_client")

WAIT = 20.0
"""How long one call waits for a vacancy, in seconds: after it the client detects an agent that has silently gone."""
ANSWER = 5.0
"""How much longer than the wait a call may take, in seconds."""
AT_ONCE = 10.0
"""How long a campaign that does not wait may take, with all its attempts, in seconds."""
ROUNDS = 6
"""How often such a campaign goes round the agents: with the pauses between, for about a second if all fail at once."""
LAST = 1.0
"""A last campaign may take so long when the wait is over, in seconds."""
RESIGN = (1.0, 5.0)
"""The shortest and the longest time that giving up may take, with all its attempts, in seconds: a third of the term
between them."""


@dataclass
class Granted:
    """A term that was granted."""

    token: int
    valid_until: int
    anchor: _clock.Anchor
    extend_at: float
    """When to extend the term, by the event loop's clock."""


class Teller:
    """Reports a wait, once for each leader."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._told: Optional[Standing] = None

    def tell(self, standing: Standing) -> None:
        if standing != self._told:
            self._told = standing
            self._hooks.state(standing)


async def campaign(pool: Pool, settings: Settings, hooks: Hooks, patience: Patience) -> Granted:
    """Waits until elected. Raises what ends the wait: the patience is over, or the agent refuses."""
    loop = asyncio.get_running_loop()
    teller = Teller(hooks)
    attempt_id = request_id()
    at_once = settings.wait == 0
    may_wait = not at_once
    pause = 0.1
    # How many answers in a row came before the wait was over.
    early = 0
    while True:
        wait = min(WAIT, patience.left()) if may_wait else 0.0
        request = pb.CampaignRequest(
            election=settings.election,
            candidate=settings.candidate,
            term=settings.term_millis(),
            kind=settings.kind,
            value=settings.value,
            request_id=attempt_id,
            wait=millis(wait, "the wait"),
        )
        asked = loop.time()
        failure: Failure
        try:
            answer = await _campaign_once(pool, request, wait, at_once, patience)
        except Failure as failed:
            failure = failed
        else:
            result = answer.value
            if result.elected:
                granted = Granted(
                    result.token,
                    answer.sent + max(0, result.valid_for) * 1_000_000,
                    answer.anchor,
                    asked + settings.term / 3,
                )
                confirmed = await _confirm(pool, settings, granted, result.provisional)
                if confirmed is not None:
                    return confirmed
                # The grant was lost before anybody worked under it.
                attempt_id = request_id()
                await patience.pause(0.05)
                continue
            leader = result.leader or None
            if patience.is_over() or at_once:
                raise NotElected(leader)
            teller.tell(Waiting(leader))
            attempt_id = request_id()
            # Of an older agent, which does not wait, or of one that shuts down.
            early = early + 1 if loop.time() - asked < wait / 2 or wait == 0 else 0
            if early:
                await patience.pause(0.1 if early == 1 else 0.75)
            if patience.is_over():
                # One last try, at once.
                may_wait = False
            pause = 0.1
            continue
        code = None if failure.refusal is None else failure.refusal[0]
        if code is Code.ALREADY_EXISTS:
            # The grant of an earlier attempt is over.
            attempt_id = request_id()
        elif code is Code.INVALID_ARGUMENT and may_wait:
            # The agent may be set to shorter waits than this.
            may_wait = False
            continue
        elif code is not None and code is not Code.RESOURCE_EXHAUSTED:
            raise failure.of_change()
        if patience.is_over() or at_once:
            raise failure.of_change()
        _log.warning("a campaign for %s/%s was not answered: %s", settings.kind, settings.election, failure.reason())
        teller.tell(Unanswered(failure.reason()))
        # With the same id: if the attempt was granted, this is the same one.
        await patience.pause(pause)
        pause = min(pause * 2, 2.0)


async def _campaign_once(
    pool: Pool, request: pb.CampaignRequest, wait: float, at_once: bool, patience: Patience
) -> Answer[pb.CampaignResult]:
    if wait == 0:
        plan = Plan.one_by_one(AT_ONCE if at_once else min(AT_ONCE, max(patience.left(), LAST)))
        plan.rounds = ROUNDS if at_once else math.inf
        return await pool.call(plan, "Election/Campaign", request, pb.CampaignResult)
    lane = WaitLane(pool)
    try:
        attempt = wait + ANSWER
        plan = Plan(within=2 * attempt, attempt=attempt, again=False, lane=lane.lane)
        return await pool.call(plan, "Election/Campaign", request, pb.CampaignResult)
    finally:
        lane.leave()


async def _confirm(pool: Pool, settings: Settings, granted: Granted, provisional: bool) -> Optional[Granted]:
    """Accepts a grant that is provisional or has little time left, before anybody works under it. None: it is lost."""
    loop = asyncio.get_running_loop()
    enough = settings.margin + settings.term / 3
    if not provisional and _clock.seconds_until(granted.valid_until) > enough:
        return granted
    while True:
        within = min(settings.term / 3, _clock.seconds_until(granted.valid_until))
        if within <= 0:
            return None
        asked = loop.time()
        extended = await extend(pool, settings, granted.token, within)
        if isinstance(extended, Until):
            if extended.valid_until > granted.valid_until:
                granted.valid_until = extended.valid_until
                granted.anchor = extended.anchor
            granted.extend_at = asked + settings.term / 3
            alive = _clock.seconds_until(granted.valid_until - _clock.nanos(settings.margin)) > 0
            return granted if alive else None
        if isinstance(extended, LostReason):
            return None
        if extended.refusal is not None and extended.refusal[0] is not Code.RESOURCE_EXHAUSTED:
            raise extended.of_change()
        await asyncio.sleep(jittered(0.05))


@dataclass
class Until:
    """An extension: until when."""

    valid_until: int
    anchor: _clock.Anchor


Extended = Union[Until, LostReason, Failure]
"""How an extension ended: a reason is a definite denial."""


async def extend(pool: Pool, settings: Settings, token: int, within: float) -> Extended:
    """Extends a term once, by whichever agent answers within the time."""
    request = pb.ExtendElectedTermRequest(
        election=settings.election,
        leader=settings.candidate,
        term=settings.term_millis(),
        kind=settings.kind,
        token=token,
    )
    plan = Plan.idempotent(within)
    # An answer that comes late is as good: it counts from when its request was sent.
    plan.attempt = within
    try:
        answer = await pool.call(plan, "Election/ExtendElectedTerm", request, pb.BoolValue)
    except Failure as failure:
        return failure
    if answer.value.value:
        return Until(answer.sent + promised(answer.value, settings.term), answer.anchor)
    return lost_of(answer.value.reason)


def promised(value: pb.BoolValue, term: float) -> int:
    """For how many ns an extension is good. Older agents leave the allowance for clock drift to their callers."""
    if value.valid_for > 0:
        return value.valid_for * 1_000_000
    return max(0, _clock.nanos(term - term / 100 - 0.002))


async def keep(pool: Pool, settings: Settings, hooks: Hooks, term: TermState, extend_at: float) -> None:
    """Extends a term every third of it, until it is lost for certain."""
    loop = asyncio.get_running_loop()
    third = settings.term / 3
    refused: Optional[tuple[Code, str]] = None
    alive = AliveCheck(hooks.alive)
    while True:
        await asyncio.sleep(max(0.0, extend_at - loop.time()))
        try:
            await alive.ask(third / 2)
        except NotAlive as error:
            term.jeopardize(str(error))
            extend_at = loop.time() + jittered(third / 4)
            continue
        if term.is_forked():
            return
        asked = loop.time()
        extended = await extend(pool, settings, term.token, third)
        if isinstance(extended, Until):
            term.extend(extended.valid_until, extended.anchor)
            refused = None
            extend_at = asked + third
        elif isinstance(extended, LostReason):
            term.lose(extended)
            return
        else:
            refused = _report(settings, hooks, term, extended, refused)
            extend_at = loop.time() + jittered(min(third / 20, 0.25))
            if extended.refusal is not None:
                extend_at += jittered(third / 8)


async def grace_over(term: TermState, grace: float) -> None:
    """Returns when the term need not be extended any more: after a grace, if the clock has ended the term."""
    why = await wait_lost(term)
    # The present leader has a larger token: there is nothing to extend.
    if why in (LostReason.TERM_OVER, LostReason.CLOCK_JUMPED):
        await asyncio.sleep(grace)


def _report(
    settings: Settings, hooks: Hooks, term: TermState, failure: Failure, refused: Optional[tuple[Code, str]]
) -> Optional[tuple[Code, str]]:
    """Reports why a term was not extended. A refusal is no loss: the term goes on until its time is over."""
    refusal = failure.refusal
    if refusal is not None and refusal[0] is not Code.RESOURCE_EXHAUSTED and refusal != refused:
        _log.error("the agent refuses to extend the term of %s/%s: %s: %s", settings.kind, settings.election, *refusal)
        hooks.state(ExtensionRefused(*refusal))
        refused = refusal
    term.jeopardize(failure.reason())
    return refused


async def resign(pool: Pool, settings: Settings, token: int, uncertain: bool) -> None:
    """Gives a term up. `uncertain`: it may have been given up before.

    Raises `Lost` if the candidate did not lead any more, or what kept agents from answering.
    """
    request = pb.ResignRequest(election=settings.election, leader=settings.candidate, kind=settings.kind, token=token)
    plan = Plan.idempotent(clamp(settings.term / 3, RESIGN))
    try:
        answer = await pool.call(plan, "Election/Resign", request, pb.BoolValue)
    except Failure as failure:
        raise failure.of_change() from None
    if answer.value.value:
        return
    if (uncertain or answer.uncertain) and answer.value.reason == LostReason.NO_TERM.value:
        # An earlier attempt has done it.
        return
    raise Lost(lost_of(answer.value.reason))
