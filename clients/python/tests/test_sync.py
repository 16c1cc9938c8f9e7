"""Leading without asyncio."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import Server, lines, run

from election_agent_client import (
    ConfigError,
    Lost,
    LostReason,
    NotCurrent,
    NotElected,
    Resigned,
    State,
    SyncAgent,
    Synced,
    sync,
)


def test_a_leader_resigns_after_its_body(sync_agent: SyncAgent, election: str) -> None:
    with sync_agent.lead(election) as term:
        term.check()
        state = sync_agent.state(election)
        assert state.is_held and state.token == term.token
        assert sync_agent.verify(election, term.token).current
    assert not sync_agent.state(election).is_held
    with pytest.raises(Lost):
        term.check()


def test_who_is_not_elected_is_told_who_leads(server: Server, sync_agent: SyncAgent, election: str) -> None:
    with SyncAgent(server.address) as other, sync_agent.lead(election), pytest.raises(NotElected) as raised:
        with other.lead(election, wait=0.5):
            raise AssertionError("elected")
    assert raised.value.leader == sync_agent.candidate


def test_a_fenced_body_is_told_and_lost_is_raised(sync_agent: SyncAgent, election: str) -> None:
    with pytest.raises(Lost) as raised:
        with sync_agent.lead(election, term=1.5, candidate="same") as term:
            sync_agent.campaign(election, term=1.5, candidate="same")
            assert term.wait_lost() is LostReason.STALE_TOKEN
    assert raised.value.reason is LostReason.STALE_TOKEN


def test_a_pause_ends_with_the_loss(sync_agent: SyncAgent, election: str) -> None:
    began = time.monotonic()
    with pytest.raises(Lost):
        with sync_agent.lead(election, term=1.5, candidate="same") as term:
            sync_agent.campaign(election, term=1.5, candidate="same")
            term.sleep(60)
    assert time.monotonic() - began < 30


def test_renewals_are_told(sync_agent: SyncAgent, election: str) -> None:
    with sync_agent.lead(election, term=1) as term:
        assert term.wait_renewed(0) is None
        first = term.wait_renewed(20)
        second = term.wait_renewed(20)
        assert first is not None and second is not None and first < second
        assert term.wait_lost(0.01) is None


def test_a_body_that_holds_the_interpreter_finds_out_when_it_looks(sync_agent: SyncAgent, election: str) -> None:
    losses: list[LostReason] = []
    with pytest.raises(Lost):
        with sync_agent.lead(election, term=1, on_lost=losses.append) as term:
            # A call into C that lets no other thread run.
            ctypes.PyDLL(None).usleep(1_500_000)
            assert term.remaining() == 0
            term.check()
    until = time.monotonic() + 20
    while not losses and time.monotonic() < until:
        time.sleep(0.01)
    assert losses == [LostReason.TERM_OVER]


def test_a_body_that_ignores_the_loss_is_not_resigned_under(server: Server, election: str) -> None:
    alive = True
    standings: list[object] = []
    with SyncAgent(server.address) as agent:
        with pytest.raises(Lost):
            with agent.lead(
                election, term=1, margin=0.5, grace=0.2, alive=lambda: alive, on_state=standings.append
            ) as term:
                alive = False
                assert term.wait_lost(20) is LostReason.TERM_OVER
                # The agent may take it for over a little later: no other candidate leads before.
                while agent.state(election).is_held:
                    time.sleep(0.02)
        assert Resigned() not in standings


def test_terms_go_on_after_a_loss(sync_agent: SyncAgent, election: str) -> None:
    passed = 0
    for term in sync_agent.terms(election, term=1.5, candidate="same"):
        passed += 1
        with term:
            if passed == 1:
                sync_agent.campaign(election, term=1.5, candidate="same")
                term.sleep(60)
        if passed == 2:
            break
    assert passed == 2
    assert not sync_agent.state(election).is_held


def test_an_observer_tells_states(sync_agent: SyncAgent, election: str) -> None:
    with sync_agent.observe(election) as observer:
        first = observer.next()
        assert isinstance(first, State) and not first.is_held
        assert isinstance(observer.next(), Synced)
        assert observer.next(0.05) is None
        with sync_agent.lead(election) as term:
            held = observer.next(20)
            assert isinstance(held, State) and held.token == term.token
        vacant = observer.next(20)
        assert isinstance(vacant, State) and not vacant.is_held
        assert observer.certain
    for state in sync_agent.observe(election):
        assert not state.is_held
        break


def test_plain_calls(sync_agent: SyncAgent, election: str) -> None:
    campaigned = sync_agent.campaign(election, term=5, kind="calls")
    assert campaigned.elected
    until = sync_agent.extend(election, campaigned.token, term=10, kind="calls")
    assert campaigned.valid_until is not None and until > campaigned.valid_until
    assert "calls" in sync_agent.kinds().kinds
    assert election in [leader.election for leader in sync_agent.leaders(kind="calls").leaders]
    sync_agent.handover(election, "next", term=5, kind="calls", leader=sync_agent.candidate, token=campaigned.token)
    verified = sync_agent.verify(election, campaigned.token, kind="calls")
    assert not verified.current and verified.reason is NotCurrent.STALE_TOKEN
    with pytest.raises(Lost):
        sync_agent.resign(election, campaigned.token, kind="calls")


def test_threads_share_an_agent_and_take_turns(sync_agent: SyncAgent, election: str) -> None:
    tokens: list[int] = []
    inside = threading.Semaphore(1)

    def lead() -> None:
        with sync_agent.lead(election) as term:
            assert inside.acquire(blocking=False), "two lead at once"
            tokens.append(term.token)
            time.sleep(0.02)
            inside.release()

    threads = [threading.Thread(target=lead) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 5 and tokens == sorted(tokens)


def test_the_thread_ends_with_the_last_agent(server: Server) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "election-loop"]

    one, two = SyncAgent(server.address), SyncAgent(server.address)
    one.kinds()
    two.kinds()
    assert len(threads()) == 1
    one.close()
    assert len(threads()) == 1
    two.close()
    assert not threads()
    # It may be used again.
    one.kinds()
    one.close()


def test_a_wait_is_interrupted_by_a_signal(server: Server, election: str) -> None:
    program = """
import sys
from election_agent_client import SyncAgent
agent = SyncAgent(sys.argv[1])
print("waits", flush=True)
try:
    with agent.lead(sys.argv[2]):
        print("elected")
except KeyboardInterrupt:
    print("interrupted")
"""
    with SyncAgent(server.address) as agent, agent.lead(election):
        waiter = subprocess.Popen(
            [sys.executable, "-c", program, server.address, election], stdout=subprocess.PIPE, text=True
        )
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waits\n"
        time.sleep(0.3)
        os.kill(waiter.pid, signal.SIGINT)
        assert waiter.communicate(timeout=30)[0] == "interrupted\n"
        assert waiter.returncode == 0


@pytest.mark.parametrize("handed_over", [True, False])
def test_who_is_interrupted_as_it_is_elected_leaves_no_leader(
    server: Server, sync_agent: SyncAgent, election: str, monkeypatch: pytest.MonkeyPatch, handed_over: bool
) -> None:
    with SyncAgent(server.address) as other:

        @sync_agent.leader_only(f"{election}-job")
        def job() -> str:
            return "ran"

        def interrupted(of: str) -> Any:
            def result(future: Any) -> Any:
                if handed_over:
                    future.result()
                else:
                    # Granted, and perhaps not handed over yet.
                    while not waits.state(of).is_held:
                        time.sleep(0.001)
                raise KeyboardInterrupt

            return result

        with SyncAgent(server.address) as waits:
            # It uses what is replaced below.
            monkeypatch.setattr(waits, "_run", lambda work: waits._submit(work).result())
            for of, use in ((election, sync_agent.lead(election).__enter__), (f"{election}-job", job)):
                with monkeypatch.context() as patched:
                    patched.setattr(sync, "_result", interrupted(of))
                    with pytest.raises(KeyboardInterrupt):
                        use()
        with other.lead(election, wait=10):
            pass
        # What it holds between calls is given up by close(), which waits for no call that never was.
        assert job() == "ran"
        sync_agent.close()
        with other.lead(f"{election}-job", wait=10):
            pass


def test_an_event_that_an_interrupted_thread_did_not_get_is_the_next_one(
    sync_agent: SyncAgent, election: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(future: Any) -> Any:
        future.result()
        raise KeyboardInterrupt

    with sync_agent.observe(election) as observer:
        for timeout in (None, 20):
            with monkeypatch.context() as patched:
                patched.setattr(sync, "_result", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    observer.next(timeout)
        assert isinstance(observer.next(), State)
        assert isinstance(observer.next(), Synced)


def test_what_follows_ends_with_its_agent(server: Server, election: str) -> None:
    agent = SyncAgent(server.address)
    states = iter(agent.observe(election))
    next(states)
    observer = agent.observe(election)
    observer.next()
    agent.close()
    del states
    observer.close()
    with pytest.raises(ConfigError, match="closed"):
        observer.next()
    # No thread is started for what has ended.
    assert "election-loop" not in [thread.name for thread in threading.enumerate()]


def test_a_pause_without_an_end_ends_with_the_loss(sync_agent: SyncAgent, election: str) -> None:
    with pytest.raises(Lost), sync_agent.lead(election, term=1.5, candidate="same") as term:
        sync_agent.campaign(election, term=1.5, candidate="same")
        assert term.wait_lost(math.inf) is LostReason.STALE_TOKEN
        term.sleep(math.inf)


def test_a_program_that_closes_nothing_ends(server: Server, election: str) -> None:
    program = """
import sys
from election_agent_client import SyncAgent
agent = SyncAgent(sys.argv[1])
with agent.lead(sys.argv[2]) as term:
    print(term.token > 0)
"""
    assert lines(run(program, server.address, election)) == ["True"]


def test_on_its_own_event_loop_it_would_wait_for_itself(sync_agent: SyncAgent, election: str) -> None:
    told: list[str] = []

    def source() -> None:
        # A function of the library's loop.
        try:
            sync_agent.kinds()
        except ConfigError as error:
            told.append(str(error))

    async def call() -> None:
        source()

    sync_agent._run(call())
    assert told and "use Agent" in told[0]


def test_an_agent_that_is_closed_under_a_leader_lets_the_term_lapse(
    server: Server, election: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = SyncAgent(server.address)
    with agent.lead(election, term=1) as term:
        agent.close()
        term.check()
    assert "lapses" in caplog.text
    with SyncAgent(server.address) as other, other.lead(election, term=1, wait=20) as next_term:
        assert next_term.token > term.token


@pytest.mark.parametrize("closes", ["nothing", "loop"])
def test_a_program_says_nothing_when_it_ends(server: Server, election: str, closes: str) -> None:
    program = """
import asyncio, sys
from election_agent_client import Agent, SyncAgent

async def main():
    agent = Agent(sys.argv[1])
    observer = agent.observe(sys.argv[2])
    await observer.next()
    async for term in agent.terms(sys.argv[2] + "-1"):
        break
    await agent.lead(sys.argv[2] + "-2").__aenter__()

if sys.argv[3] == "loop":
    asyncio.run(main())
else:
    agent = SyncAgent(sys.argv[1])
    agent.lead(sys.argv[2]).__enter__()
    agent.observe(sys.argv[2]).next()
"""
    done = run(program, server.address, election, closes)
    assert done.returncode == 0 and done.stderr == "", done.stderr
