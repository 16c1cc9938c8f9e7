"""The caller's own functions, which raise, hang, or are of another kind than asked for."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import time
from typing import Any

import pytest
from conftest import Server, eventually, lines, run

from election_agent_client import (
    Agent,
    ConfigError,
    Jeopardy,
    Leading,
    Lost,
    LostReason,
    NotKnown,
    Resigned,
    Standing,
    SyncAgent,
    Term,
    Unreachable,
    _timer,
)
from election_agent_client import _clock as clock
from election_agent_client._hooks import Hooks
from election_agent_client.term import TermState


async def test_hooks_that_fail_hold_up_none_after_them(
    agent: Agent, election: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Standing] = []

    async def coroutine() -> None: ...

    def hook(standing: Standing) -> object:
        if isinstance(standing, Leading):
            sys.exit(1)
        if isinstance(standing, Resigned):
            told.append(standing)
            return coroutine()
        raise ValueError("a fault of the hook")

    for _ in range(2):
        async with agent.lead(election, on_state=hook):
            pass

    async def both() -> bool:
        return told == [Resigned(), Resigned()]

    await eventually(both)
    assert "SystemExit" in caplog.text

    async def says_so() -> bool:
        return "nobody awaits" in caplog.text

    await eventually(says_so)


async def _false() -> bool:
    return False


@pytest.mark.parametrize(
    ("alive", "words"),
    [
        # True, if it is taken for an answer.
        (lambda: _false(), "nobody awaits"),
        (lambda: None, "give True or False"),
        (lambda: 1 // 0, "ZeroDivisionError"),
    ],
)
async def test_what_is_no_answer_is_not_alive(agent: Agent, election: str, alive: Any, words: str) -> None:
    standings: list[Standing] = []
    with pytest.raises(Lost) as raised:
        async with agent.lead(election, term=1, alive=alive, on_state=standings.append):
            await asyncio.sleep(60)
    assert raised.value.reason is LostReason.TERM_OVER

    async def told() -> bool:
        return any(isinstance(standing, Jeopardy) and words in standing.reason for standing in standings)

    await eventually(told)


async def test_an_alive_that_exits_is_asked_again(agent: Agent, election: str) -> None:
    asked = 0

    def alive() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            sys.exit(1)
        return True

    async with agent.lead(election, term=2, alive=alive) as term:
        for _ in range(3):
            await term.renewed()
    assert asked > 1


async def test_a_token_function_that_hangs_is_called_once_and_takes_no_thread_of_the_program(server: Server) -> None:
    asked = 0
    goes_on = threading.Event()

    def hangs() -> str:
        nonlocal asked
        asked += 1
        goes_on.wait()
        return "token"

    async with Agent(server.address, token_from=hangs, allow_plaintext_token=True, timeout=0.1) as agent:
        for _ in range(3):
            with pytest.raises(Unreachable, match="no token in time"):
                await agent.kinds()
        assert asked == 1
        goes_on.set()

        async def answers() -> bool:
            try:
                return bool(await agent.kinds())
            except (NotKnown, Unreachable):
                return False

        await eventually(answers)


HANGS = """
import sys, threading
from election_agent_client import SyncAgent, Unreachable

agent = SyncAgent(sys.argv[1], token_from=threading.Event().wait, allow_plaintext_token=True, timeout=0.2)
try:
    agent.kinds()
except Unreachable:
    print("ends")
"""


def test_a_token_function_that_hangs_does_not_keep_the_process(server: Server) -> None:
    began = time.monotonic()
    assert lines(run(HANGS, server.address)) == ["ends"]
    assert time.monotonic() - began < 50


NAMES = """
import asyncio, socket, sys, threading
from election_agent_client import Agent, Unreachable

lookups = []

def hangs(*arguments, **options):
    lookups.append(1)
    threading.Event().wait()

socket.getaddrinfo = hangs

async def main():
    async with Agent("a.example:1", timeout=2.5) as agent:
        for _ in range(2):
            try:
                await agent.kinds()
            except Unreachable as error:
                assert "not resolved" in str(error), error
        # A thread of the program's executor is there for the program.
        await asyncio.get_running_loop().run_in_executor(None, print, len(lookups))

asyncio.run(main())
"""


def test_a_name_that_is_not_resolved_takes_no_thread_of_the_program_and_does_not_keep_the_process() -> None:
    assert lines(run(NAMES)) == ["1"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: 5, "no string"),
        (lambda: "", "empty"),
        (lambda: "a b", "characters"),
        (lambda: "é", "characters"),
        (lambda: sys.exit(1), "SystemExit"),
    ],
)
async def test_what_is_no_token_is_sent_to_nobody(server: Server, source: Any, words: str) -> None:
    async with Agent(server.address, token_from=source, allow_plaintext_token=True, timeout=0.2) as agent:
        with pytest.raises(Unreachable, match=words):
            await agent.kinds()


async def test_a_plain_function_may_return_what_has_to_be_awaited(server: Server) -> None:
    loops = set()

    async def fetch() -> str:
        loops.add(asyncio.get_running_loop())
        return "token"

    async with Agent(server.address, token_from=lambda: fetch(), allow_plaintext_token=True) as agent:
        await asyncio.gather(agent.kinds(), agent.kinds(), agent.kinds())
    assert loops == {asyncio.get_running_loop()}


async def test_a_token_file_of_rubbish_is_in_the_middle_of_being_replaced(server: Server, tmp_path: Any) -> None:
    file = tmp_path / "token"
    async with Agent(server.address, token_file=file, allow_plaintext_token=True, timeout=1) as agent:
        for rubbish in ("two\nlines", "é"):
            file.write_text(rubbish)
            with pytest.raises(Unreachable, match="token file"):
                await agent.kinds()
        file.write_text("good\n")
        await agent.kinds()
        for rubbish in ("two\nlines", "é"):
            file.write_text(rubbish)
            await agent.kinds()


async def test_leader_only_decorates_what_can_be_given_the_term(agent: Agent, election: str) -> None:
    class Jobs:
        def __init__(self) -> None:
            self.ran: list[Any] = []

        @agent.leader_only(election)
        async def method(self, term: Term, what: str, *, times: int = 1) -> int:
            """Does it."""
            assert term.election == election
            self.ran += [what] * times
            return term.token

        @agent.leader_only(election)
        async def rest(self, *args: int, **kwargs: int) -> Any:
            return args, kwargs

    jobs = Jobs()
    assert await jobs.method("a", times=2)
    assert jobs.ran == ["a", "a"]
    assert await jobs.rest(1, b=2) == ((1,), {"b": 2})
    # Those who look at its parameters, as schedulers do, are told of what callers give.
    assert list(inspect.signature(jobs.method).parameters) == ["what", "times"]
    assert jobs.method.__doc__ == "Does it." and inspect.iscoroutinefunction(jobs.method)

    async def positional(term: Term, /) -> None: ...

    for wrong in (positional, lambda: None, 5, None, Jobs):
        with pytest.raises(ConfigError):
            agent.leader_only(election)(wrong)  # type: ignore[arg-type]


def test_the_twin_decorates_plain_functions(sync_agent: SyncAgent, election: str) -> None:
    async def coroutine() -> None: ...

    async def asynchronous_generator() -> Any:
        yield 1

    def generator() -> Any:
        yield 1

    class Callable:
        async def __call__(self) -> None: ...

    wrong: Any
    for wrong in (coroutine, functools.partial(coroutine), asynchronous_generator, generator, Callable(), 5, None):
        with pytest.raises(ConfigError):
            sync_agent.leader_only(election)(wrong)
    with pytest.raises(ConfigError, match="nobody awaits"):
        sync_agent.leader_only(election)(lambda: coroutine())()
    assert sync_agent.leader_only(election)(lambda **options: options)(a=1) == {"a": 1}
    assert sync_agent.leader_only(election)(lambda term, what: (term.election, what))("a") == (election, "a")
    assert sync_agent.leader_only(election)(lambda what, *, term: (term.election, what))("a") == (election, "a")
    assert sync_agent.leader_only(election)(dict)(a=1) == {"a": 1}


async def test_functions_of_an_election_share_its_leadership(
    server: Server, agent: Agent, sync_agent: SyncAgent, election: str
) -> None:
    tokens: list[int] = []

    @agent.leader_only(election)
    async def one(term: Term) -> None:
        tokens.append(term.token)

    @agent.leader_only(election)
    async def two(term: Term) -> None:
        tokens.append(term.token)

    await one()
    await asyncio.gather(one(), two())
    assert len(tokens) == 3 and len(set(tokens)) == 1

    with pytest.raises(ConfigError, match="different arguments"):
        agent.leader_only(election, term=60)(one)

    first, second = (sync_agent.leader_only(f"{election}-twin")(lambda term: term.token) for _ in range(2))
    assert await asyncio.get_running_loop().run_in_executor(
        None, first
    ) == await asyncio.get_running_loop().run_in_executor(None, second)


def test_a_function_of_the_twin_does_not_close_its_agent(sync_agent: SyncAgent, election: str) -> None:
    @sync_agent.leader_only(election)
    def job() -> None:
        sync_agent.close()

    caught: list[BaseException] = []

    def call() -> None:
        try:
            job()
        except ConfigError as error:
            caught.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert caught and "outside" in str(caught[0])


def test_a_timer_that_could_not_start_starts_when_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timer, "TIMER", _timer.Timer())

    def state() -> TermState:
        lost: list[LostReason] = []
        hooks = Hooks(on_lost=lost.append)
        until = clock.now_ns() + 10**8
        return TermState("k", "e", "c", 1, until, clock.Anchor(), 0, hooks, Term)

    with monkeypatch.context() as patched:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            state()
    term = state()
    with term.changed:
        # Nobody else looks at the clock.
        assert term.changed.wait_for(lambda: term.lost is not None, 20)
