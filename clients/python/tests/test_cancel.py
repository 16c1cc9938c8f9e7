"""Ends of bodies that are cancelled: by the loss, by somebody else, or by both."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from conftest import Server, eventually, run

from election_agent_client import Agent, ConfigError, Lost, LostReason
from election_agent_client._leadership import Leadership


async def is_vacant(agent: Agent, election: str) -> bool:
    return not (await agent.state(election)).is_held


async def fence(agent: Agent, election: str) -> None:
    await agent.campaign(election, term=1.5, candidate="same")


async def test_who_is_cancelled_while_it_resigns_has_resigned(agent: Agent, other: Agent, election: str) -> None:
    inside = asyncio.Event()

    async def lead() -> None:
        async with agent.lead(election, term=60):
            inside.set()

    leading = asyncio.create_task(lead())
    await inside.wait()
    # The body has ended, and the resignation is under way.
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    async with other.lead(election, wait=10):
        pass
    async with agent.lead(election, wait=10):
        pass


async def test_a_body_that_cancels_itself_and_ends_has_resigned(agent: Agent, other: Agent, election: str) -> None:
    async def lead() -> None:
        async with agent.lead(election, term=60):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(lead())
    async with other.lead(election, wait=10):
        pass


async def test_who_is_cancelled_at_its_end_after_a_loss_may_lead_again(agent: Agent, election: str) -> None:
    async def lead() -> None:
        async with agent.lead(election, term=1.5, candidate="same") as term:
            await fence(agent, election)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                assert term.is_lost
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(lead())
    async with agent.lead(election, candidate="same", wait=10):
        pass


async def test_closing_an_agent_waits_for_a_resignation_that_nobody_waits_for(server: Server, election: str) -> None:
    async with Agent(server.address) as agent:

        async def lead() -> None:
            async with agent.lead(election, term=60):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

        await asyncio.wait({asyncio.create_task(lead())})
    async with Agent(server.address) as other:
        assert await is_vacant(other, election)


async def test_a_loss_before_the_body_begins_cancels_nobody_after_it(
    agent: Agent, election: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = agent._start

    async def lost(*arguments: Any) -> Leadership:
        leadership = await start(*arguments)
        leadership.state.lose(LostReason.HELD_BY_OTHER)
        return leadership

    monkeypatch.setattr(agent, "_start", lost)
    with pytest.raises(Lost):
        async with agent.lead(election):
            pass  # It does not pause, so nothing can cancel it.
    await asyncio.sleep(0)


async def test_each_body_of_a_term_is_cancelled_at_its_loss(agent: Agent, election: str) -> None:
    passed = 0
    async for term in agent.terms(election, term=1.5, candidate="same"):
        passed += 1
        if passed == 2:
            break
        async with term:
            await fence(agent, election)
            await asyncio.sleep(60)
        assert term.is_lost
        async with term:
            await asyncio.sleep(60)
            raise AssertionError("it works without leading")
    assert passed == 2


async def test_the_second_body_of_a_term_is_cancelled_at_its_loss(agent: Agent, election: str) -> None:
    passed = 0
    async for term in agent.terms(election, term=1.5, candidate="same"):
        passed += 1
        if passed == 2:
            break
        async with term:
            await asyncio.sleep(0)
        async with term:
            await fence(agent, election)
            await asyncio.sleep(60)
    assert passed == 2


async def test_a_function_of_the_leader_that_swallows_its_cancellation_raises_lost(agent: Agent, election: str) -> None:
    @agent.leader_only(election, term=1.5, candidate="same")
    async def job() -> str:
        await fence(agent, election)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return "as if nothing had happened"

    with pytest.raises(Lost):
        await job()


async def test_a_function_of_the_leader_does_not_close_its_agent(agent: Agent, election: str) -> None:
    @agent.leader_only(election)
    async def job() -> None:
        await agent.close()

    with pytest.raises(ConfigError, match="outside"):
        await asyncio.wait_for(job(), 20)


async def test_who_leads_while_its_agent_is_closed_resigns_and_leaves_nothing_open(
    server: Server, other: Agent, election: str
) -> None:
    agent = Agent(server.address)
    async with agent.lead(election, term=60):
        runtime = agent._runtime()
        await agent.close()
    assert await is_vacant(other, election)
    assert not runtime.pool._connections and not agent._runtimes


async def test_nested_leaders_are_told_of_their_own_loss(agent: Agent, election: str) -> None:
    with pytest.raises(Lost) as raised:
        async with agent.lead(election, term=1.5, candidate="same") as outer:
            async with agent.lead(f"{election}-inner") as inner:
                await fence(agent, election)
                await asyncio.sleep(60)
    assert raised.value.reason is LostReason.STALE_TOKEN
    assert outer.is_lost and inner.is_lost
    assert await is_vacant(agent, f"{election}-inner")


async def test_an_error_that_a_lost_body_raises_goes_on(agent: Agent, election: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with agent.lead(election, term=1.5, candidate="same"):
            await fence(agent, election)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                1 / 0  # noqa: B018
    # The task is not cancelled any more.
    await asyncio.sleep(0)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no asyncio.timeout and TaskGroup before")
async def test_timeouts_and_groups_of_tasks_see_their_own_cancellations(agent: Agent, election: str) -> None:
    timeout, group = asyncio.timeout, asyncio.TaskGroup  # type: ignore[attr-defined, unused-ignore]
    with pytest.raises(asyncio.TimeoutError):
        async with timeout(0.2):
            async with agent.lead(election, term=60):
                await asyncio.sleep(60)
    assert await eventually(lambda: is_vacant(agent, election))
    with pytest.raises(Lost):
        async with timeout(60):
            async with agent.lead(election, term=1.5, candidate="same"):
                async with timeout(50), group() as tasks:
                    tasks.create_task(asyncio.sleep(60))
                    await fence(agent, election)
    task: Any = asyncio.current_task()
    assert task.cancelling() == 0
    with pytest.raises(BaseException) as raised:
        async with group() as tasks:

            async def lead() -> None:
                async with agent.lead(election, term=1.5, candidate="same"):
                    await fence(agent, election)
                    await asyncio.sleep(60)

            tasks.create_task(lead())
    assert [type(error) for error in raised.value.exceptions] == [Lost]  # type: ignore[attr-defined]


DEBUG = """
import asyncio, sys
from election_agent_client import Agent, Lost

async def main():
    async with Agent(sys.argv[1]) as agent:
        async with agent.lead(sys.argv[2], term=1) as term:
            await term.renewed()
        async for term in agent.terms(sys.argv[2]):
            async with term:
                pass
            break
        async for state in agent.observe(sys.argv[2]):
            break
        try:
            async with agent.lead(sys.argv[2], term=1.5, candidate="same"):
                await agent.campaign(sys.argv[2], term=1.5, candidate="same")
                await asyncio.sleep(60)
        except Lost:
            print("lost")
    # Somebody forgets to close this one, and it goes with everything it had.
    forgotten = Agent(sys.argv[1])
    await forgotten.kinds()

asyncio.run(main())
"""


def test_asyncios_debug_mode_has_nothing_to_say(server: Server, election: str) -> None:
    done = run(DEBUG, server.address, election, PYTHONASYNCIODEBUG="1")
    assert done.returncode == 0 and done.stdout == "lost\n", done.stderr
    slow = [line for line in done.stderr.splitlines() if "took" in line and "seconds" in line]
    others = [line for line in done.stderr.splitlines() if line not in slow and "leadership of" not in line]
    assert not others, done.stderr
