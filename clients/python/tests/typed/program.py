"""What a typed program may write, for type checkers: it does not run."""

from __future__ import annotations

import asyncio
import datetime
import pathlib
from collections.abc import Iterator, Sequence
from typing import Optional

from typing_extensions import assert_type

from election_agent_client import (
    Agent,
    Campaigned,
    Certainty,
    Event,
    Kinds,
    Leader,
    Leaders,
    Leading,
    LoopTerm,
    Lost,
    LostReason,
    NotElected,
    Observer,
    Pod,
    Refused,
    Standing,
    State,
    SyncAgent,
    Synced,
    SyncLoopTerm,
    SyncObserver,
    SyncTerm,
    Term,
    Verified,
)


def told(standing: Standing) -> None:
    if isinstance(standing, Leading):
        assert_type(standing.token, int)


def looks(term: Term) -> None:
    assert_type(term.in_jeopardy, bool)


def looks_too(term: SyncTerm) -> bool:
    return term.in_jeopardy


async def issue() -> str:
    return "token"


agent = Agent(
    ["https://a:8443", "https://b:8443"],
    ca_file=pathlib.Path("ca.pem"),
    token_from=issue,
    timeout=datetime.timedelta(seconds=5),
)
twin = SyncAgent("a:8443,b:8443", token_from=lambda: "token", allow_plaintext_token=True)


@agent.leader_only("nightly")
async def job(term: Term, what: str, *, times: int = 1) -> int:
    return term.token


@agent.leader_only("nightly")
async def job_without_term(what: str) -> int:
    return 1


class Jobs:
    @agent.leader_only("nightly")
    async def job(self, term: Term, what: str) -> int:
        return term.token

    @twin.leader_only("nightly")
    def plain(self, term: SyncTerm, what: str) -> int:
        return term.token

    @twin.leader_only("nightly")
    def without_term(self, what: str) -> int:
        return 1


@twin.leader_only("nightly")
def plain(term: SyncTerm, what: str) -> int:
    return term.token


async def asynchronous() -> None:
    async with agent.lead("nightly", kind="batch", term=15) as term:
        assert_type(term, Term)
        assert_type(term.token, int)
        assert_type(term.valid_until, int)
        assert_type(term.remaining(), float)
        term.check()
        assert_type(await term.renewed(), int)
        assert_type(await term.lost(), LostReason)
    async for each in agent.terms("nightly", on_state=told, on_lost=print, on_jeopardy=looks, alive=lambda: True):
        assert_type(each, LoopTerm)
        async with each as inner:
            assert_type(inner, Term)
    observer = agent.observe("nightly")
    assert_type(observer, Observer)
    async for state in observer:
        assert_type(state, State)
        assert_type(state.leader, Optional[Leader])
    async for event in observer.events():
        assert_type(event, Event)
        if not isinstance(event, (Synced, Certainty)):
            assert_type(event, State)
    assert_type(await agent.verify("nightly", 7), Verified)
    assert_type(await agent.leaders(all_kinds=True), Leaders)
    assert_type(await agent.kinds(), Kinds)
    assert_type(await agent.campaign("nightly", term=5), Campaigned)
    assert_type(await agent.extend("nightly", 7, term=5), int)
    assert_type(await agent.pods("default", deployment="d"), list[Pod])
    assert_type(await job("a", times=2), Optional[int])
    assert_type(await job_without_term("a"), Optional[int])
    assert_type(await Jobs().job("a"), Optional[int])
    # A coroutine, of which tasks are made.
    asyncio.create_task(job("a"))
    await job(1)  # type: ignore[arg-type]  # pyright: ignore
    await job("a", term=None)  # type: ignore[call-arg]  # pyright: ignore
    await Jobs().job()  # type: ignore[call-arg]  # pyright: ignore


def synchronous() -> None:
    with twin.lead("nightly", wait=datetime.timedelta(0)) as term:
        assert_type(term, SyncTerm)
        term.sleep(1)
        assert_type(term.wait_lost(1), Optional[LostReason])
        assert_type(term.wait_renewed(), Optional[int])
    terms = twin.terms("nightly", on_jeopardy=looks_too)
    assert_type(terms, Iterator[SyncLoopTerm])
    with twin.observe(kind="batch") as observer:
        assert_type(observer, SyncObserver)
        for state in observer:
            assert_type(state, State)
    assert_type(plain("a"), Optional[int])
    assert_type(Jobs().plain("a"), Optional[int])
    assert_type(Jobs().without_term("a"), Optional[int])
    plain()  # type: ignore[call-arg]  # pyright: ignore
    twin.lead("nightly", term="15s")  # type: ignore[arg-type]  # pyright: ignore


def errors(endpoints: Sequence[str]) -> None:
    try:
        SyncAgent(endpoints).kinds()
    except NotElected as error:
        assert_type(error.leader, Optional[str])
    except Lost as error:
        assert_type(error.reason, LostReason)
    except Refused as error:
        assert_type(error.message, str)
