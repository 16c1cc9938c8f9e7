"""Leading on an event loop."""

from __future__ import annotations

import asyncio
import datetime
import logging
import threading
import time

import pytest
from conftest import Proxy, Server, eventually

from election_agent_client import (
    Agent,
    ConfigError,
    Jeopardy,
    LeadershipLost,
    Leading,
    Lost,
    LostReason,
    NotElected,
    Resigned,
    Term,
    Waiting,
)


async def leads(agent: Agent, election: str) -> bool:
    return (await agent.state(election)).is_held


async def test_a_leader_resigns_after_its_body(agent: Agent, election: str) -> None:
    async with agent.lead(election, value="10.0.0.7:9000") as term:
        term.check()
        assert 13 < term.remaining() <= 15
        assert term.valid_until > time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert (term.election, term.kind, term.candidate) == (election, "default", agent.candidate)
        state = await agent.state(election)
        assert state.leader is not None
        assert (state.leader.name, state.token) == (agent.candidate, term.token)
        assert state.leader.value == "10.0.0.7:9000"
        assert not term.in_jeopardy
    assert not await leads(agent, election)
    assert term.is_lost and term.remaining() == 0
    with pytest.raises(Lost):
        term.check()


async def test_the_next_leads_with_a_larger_token(agent: Agent, other: Agent, election: str) -> None:
    tokens = []

    async def lead(candidate: Agent) -> None:
        async with candidate.lead(election) as term:
            tokens.append(term.token)
            await asyncio.sleep(0.05)

    await asyncio.gather(lead(agent), lead(other), lead(agent))
    assert len(tokens) == 3 and tokens == sorted(tokens)


@pytest.mark.parametrize("wait", [0, 0.5, datetime.timedelta(milliseconds=500)])
async def test_who_is_not_elected_is_told_who_leads(agent: Agent, other: Agent, election: str, wait: float) -> None:
    async with agent.lead(election):
        with pytest.raises(NotElected) as raised:
            async with other.lead(election, wait=wait):
                raise AssertionError("elected")
    assert raised.value.leader == agent.candidate
    assert agent.candidate in str(raised.value)


async def test_a_process_does_not_fence_itself(agent: Agent, election: str) -> None:
    async with agent.lead(election) as term:
        with pytest.raises(NotElected):
            async with agent.lead(election, wait=0.1):
                raise AssertionError("elected")
        term.check()


async def test_an_error_of_the_body_is_raised_and_the_leader_resigns(agent: Agent, election: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with agent.lead(election):
            raise ZeroDivisionError
    assert not await leads(agent, election)


async def test_who_is_cancelled_while_it_waits_does_not_lead_later(agent: Agent, other: Agent, election: str) -> None:
    async def lead() -> None:
        async with other.lead(election):
            raise AssertionError("elected")

    async with agent.lead(election):
        task = asyncio.create_task(lead())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.3)
    assert not await leads(agent, election)


async def test_a_task_that_is_cancelled_from_outside_stays_cancelled(agent: Agent, election: str) -> None:
    started = asyncio.Event()

    async def lead() -> None:
        async with agent.lead(election):
            started.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(lead())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await leads(agent, election)


async def test_a_fenced_body_is_cancelled_and_lost_is_raised(agent: Agent, other: Agent, election: str) -> None:
    task = asyncio.current_task()
    with pytest.raises(Lost) as raised:
        async with agent.lead(election, term=1.5, candidate="same") as term:
            await other.campaign(election, term=1.5, candidate="same")
            await asyncio.sleep(60)
    assert raised.value.reason is LostReason.STALE_TOKEN
    assert await term.lost() is LostReason.STALE_TOKEN
    if task is not None and hasattr(task, "cancelling"):
        assert task.cancelling() == 0
    # The task goes on as one that was never cancelled.
    await asyncio.sleep(0.01)


async def test_who_has_lost_to_another_does_not_resign_for_it(agent: Agent, other: Agent, election: str) -> None:
    with pytest.raises(Lost):
        async with agent.lead(election, term=1.5, candidate="same"):
            campaigned = await other.campaign(election, term=5, candidate="same")
            await asyncio.sleep(60)
    state = await agent.state(election)
    assert state.is_held and state.token == campaigned.token


async def test_cut_off_it_loses_in_time_and_says_so(
    server: Server, proxies: object, election: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy: Proxy = proxies(server)  # type: ignore[operator]
    standings: list[object] = []
    jeopardies: list[object] = []
    losses: list[LostReason] = []
    async with Agent(proxy.address) as agent:
        with caplog.at_level(logging.INFO, "election_agent_client"), pytest.raises(Lost) as raised:
            async with agent.lead(
                election,
                term=1.5,
                grace=0.2,
                on_state=standings.append,
                on_jeopardy=jeopardies.append,
                on_lost=losses.append,
            ) as term:
                await term.renewed()
                proxy.hold()
                try:
                    await asyncio.sleep(60)
                finally:
                    ended, until = time.clock_gettime_ns(time.CLOCK_BOOTTIME), term.valid_until
        proxy.heal()
    assert raised.value.reason is LostReason.TERM_OVER
    assert ended < until, "the body was cancelled after the end of its term"

    async def told() -> bool:
        return bool(losses)

    await eventually(told)
    assert losses == [LostReason.TERM_OVER]
    assert [type(standing) for standing in standings] == [Leading, Jeopardy, LeadershipLost], (
        "nobody could be told of it"
    )
    assert len(jeopardies) == 1
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert "is elected" in messages and "in jeopardy" in messages and "lost" in messages


async def test_a_body_that_goes_on_is_cancelled_again_and_its_term_lapses(
    server: Server, proxies: object, election: str, caplog: pytest.LogCaptureFixture
) -> None:
    cancels = 0
    standings: list[object] = []
    alive = True
    async with Agent(server.address) as agent, Agent(server.address) as other:
        with pytest.raises(Lost):
            async with agent.lead(
                election, term=2, margin=1, grace=0.5, alive=lambda: alive, on_state=standings.append
            ):
                alive = False
                try:
                    while True:
                        try:
                            await asyncio.sleep(60)
                        except asyncio.CancelledError:
                            cancels += 1
                            if cancels == 2:
                                raise
                finally:
                    assert await leads(other, election), "it lapses, and is not given up"
        assert cancels == 2
        assert Resigned() not in standings
        assert "has not ended within the grace" in caplog.text
        # It lapses.
        async with other.lead(election, term=1):
            pass


async def test_an_event_loop_that_is_blocked_for_longer_than_the_term_loses(
    agent: Agent, other: Agent, election: str
) -> None:
    losses: list[tuple[LostReason, int]] = []

    def lost(why: LostReason) -> None:
        losses.append((why, threading.get_ident()))

    with pytest.raises(Lost):
        async with agent.lead(election, term=1, on_lost=lost) as term:
            time.sleep(1.5)  # noqa: ASYNC251 that is the point
            # The timer's thread has reported it meanwhile.
            assert [why for why, _ in losses] == [LostReason.TERM_OVER]
            assert losses[0][1] != threading.get_ident()
            assert term.remaining() == 0
            with pytest.raises(Lost):
                term.check()
            await asyncio.sleep(60)


async def test_an_application_that_hangs_is_not_extended(agent: Agent, election: str) -> None:
    hangs = threading.Event()
    asked = 0

    def alive() -> bool:
        nonlocal asked
        asked += 1
        hangs.wait(30)
        return True

    with pytest.raises(Lost) as raised:
        async with agent.lead(election, term=1, alive=alive):
            await asyncio.sleep(60)
    hangs.set()
    assert raised.value.reason is LostReason.TERM_OVER
    assert asked == 1, "one that hangs is asked once"


async def test_terms_leads_again_and_again(agent: Agent, election: str) -> None:
    tokens = []
    async for term in agent.terms(election):
        tokens.append(term.token)
        assert await leads(agent, election)
        if len(tokens) == 3:
            break
    assert tokens == sorted(set(tokens)) and len(tokens) == 3

    async def vacant() -> bool:
        return not await leads(agent, election)

    await eventually(vacant)


async def test_terms_go_on_after_a_loss(agent: Agent, other: Agent, election: str) -> None:
    outcomes = []
    async for term in agent.terms(election, term=1.5, candidate="same"):
        async with term:
            if not outcomes:
                outcomes.append("fenced")
                campaigned = await other.campaign(election, term=1.5, candidate="same")
                await asyncio.sleep(60)
            outcomes.append("leads")
            assert term.token > campaigned.token
        if len(outcomes) == 2:
            break
    assert outcomes == ["fenced", "leads"]


async def test_a_check_in_the_body_of_a_term_ends_the_body_and_not_the_loop(
    agent: Agent, other: Agent, election: str
) -> None:
    passed = 0
    async for term in agent.terms(election, term=1.5, candidate="same"):
        passed += 1
        async with term:
            if passed == 1:
                await other.campaign(election, term=1.5, candidate="same")
                while True:
                    time.sleep(0.05)  # noqa: ASYNC251 cannot be cancelled
                    term.check()
        if passed == 2:
            break
    assert passed == 2


async def test_a_loop_without_a_body_that_contains_the_loss_is_cancelled(
    agent: Agent, other: Agent, election: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async for _ in agent.terms(election, term=1.5, candidate="same"):
            await other.campaign(election, term=1.5, candidate="same")
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "async with term:" in caplog.text


async def test_a_wait_is_told_of(agent: Agent, other: Agent, election: str) -> None:
    standings: list[object] = []
    async with agent.lead(election):
        task = asyncio.create_task(_lead_once(other, election, standings))

        async def waits() -> bool:
            return Waiting(agent.candidate) in standings

        await eventually(waits)
    await task
    assert [type(each) for each in standings if not isinstance(each, Waiting)] == [Leading, Resigned]


async def _lead_once(agent: Agent, election: str, standings: list[object]) -> None:
    async with agent.lead(election, on_state=standings.append):
        pass

    async def told() -> bool:
        return Resigned() in standings

    await eventually(told)


async def test_many_elections_share_a_stream(server: Server, proxies: object) -> None:
    proxy: Proxy = proxies(server)  # type: ignore[operator]
    async with Agent(proxy.address) as agent:
        ready = 0

        async def lead(number: int) -> None:
            nonlocal ready
            async with agent.lead(f"many-{number}", term=2) as term:
                ready += 1
                await term.renewed()
                while ready < 50:
                    await term.renewed()

        await asyncio.gather(*(lead(number) for number in range(50)))
        assert proxy.connections == 1


async def test_nothing_is_left_when_an_agent_is_closed(server: Server, election: str) -> None:
    before = asyncio.all_tasks()
    async with Agent(server.address) as agent:
        async with agent.lead(election):
            pass
        observer = agent.observe(election)
        await observer.next()
        await agent.kinds()

    async def alone() -> bool:
        # gRPC's own tasks end a moment later.
        return asyncio.all_tasks() == before

    await eventually(alone)


async def test_without_close_a_leader_that_has_ended_leaves_no_task(server: Server, election: str) -> None:
    before = asyncio.all_tasks()
    agent = Agent(server.address)
    async with agent.lead(election):
        pass

    async def alone() -> bool:
        return asyncio.all_tasks() == before

    await eventually(alone)
    await agent.close()


async def test_a_lead_is_entered_once_at_a_time(agent: Agent, election: str) -> None:
    lead = agent.lead(election)
    async with lead:
        with pytest.raises(ConfigError):
            await lead.__aenter__()
    # And again after that.
    async with lead:
        pass


async def test_an_agent_works_in_one_event_loop_after_another(server: Server, election: str) -> None:
    agent = Agent(server.address)

    async def lead() -> int:
        async with agent.lead(election) as term:
            token = term.token
        await agent.close()
        return token

    tokens = await asyncio.gather(*(asyncio.to_thread(asyncio.run, lead()) for _ in range(3)))
    assert len(set(tokens)) == 3


async def test_renewed_raises_at_the_loss(agent: Agent, other: Agent, election: str) -> None:
    with pytest.raises(Lost):
        async with agent.lead(election, term=1.5, candidate="same") as term:
            await other.campaign(election, term=1.5, candidate="same")
            beside = Term(term._state)
            while True:
                await beside.renewed()


@pytest.mark.parametrize("leave", ["break", "raise", "return"])
async def test_a_loop_that_ends_gives_its_term_up_before_the_agent_is_closed(
    server: Server, agent: Agent, election: str, leave: str
) -> None:
    async def loop() -> None:
        async with Agent(server.address) as other:
            async for term in other.terms(election):
                term.check()
                if leave == "break":
                    break
                if leave == "return":
                    return
                raise ZeroDivisionError

    try:
        await loop()
    except ZeroDivisionError:
        assert leave == "raise"
    assert not await leads(agent, election)


async def test_what_is_granted_at_the_last_moment_is_withdrawn(agent: Agent, other: Agent, election: str) -> None:
    """A wait that ends just as the candidate is elected leaves no leader behind, and reports no loss."""
    losses: list[LostReason] = []
    for wait in range(12):
        won = await other.campaign(election, term=20)
        assert won.elected, f"after a wait of {wait} ms nobody works, but {won.leader} leads"

        async def lead(wait: int = wait) -> None:
            try:
                async with agent.lead(election, wait=0.2 + wait / 1000, on_lost=losses.append):
                    pass
            except NotElected:
                pass

        task = asyncio.create_task(lead())
        await asyncio.sleep(0.2)
        await other.resign(election, won.token)
        await task

        async def vacant() -> bool:
            return not await leads(agent, election)

        await eventually(vacant)
    assert not losses
