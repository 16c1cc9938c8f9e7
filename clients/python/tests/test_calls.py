"""Plain calls, observers and bad input."""

from __future__ import annotations

import asyncio
import datetime
import math
import pathlib
import signal
import time
from typing import Any

import pytest
from conftest import Server, eventually

from election_agent_client import (
    Agent,
    Cause,
    Certainty,
    Code,
    ConfigError,
    ElectionAgentError,
    Lost,
    LostReason,
    NotCurrent,
    NotKnown,
    Refused,
    State,
    SyncAgent,
    Synced,
    Unreachable,
    _clock,
)


async def test_a_campaign_is_repeated_under_its_name(agent: Agent, election: str) -> None:
    first = await agent.campaign(election, term=5, request_id="attempt", value="here")
    again = await agent.campaign(election, term=5, request_id="attempt", value="here")
    assert first.elected and again.elected and first.token == again.token
    assert first.value == "here" and first.leader == agent.candidate and not first.provisional
    assert first.valid_until is not None
    assert 0 < first.valid_until - time.clock_gettime_ns(time.CLOCK_BOOTTIME) < 5e9


async def test_that_another_leads_is_no_error_of_a_campaign(agent: Agent, other: Agent, election: str) -> None:
    won = await agent.campaign(election, term=5)
    denied = await other.campaign(election, term=5)
    assert not denied.elected and denied.leader == agent.candidate and denied.token == won.token
    assert denied.valid_until is None


async def test_a_campaign_waits(agent: Agent, other: Agent, election: str) -> None:
    won = await agent.campaign(election, term=20)
    waiting = asyncio.create_task(other.campaign(election, term=5, wait=20))
    await asyncio.sleep(0.2)
    await agent.resign(election, won.token)
    granted = await waiting
    assert granted.elected and granted.provisional and granted.token > won.token
    await other.extend(election, granted.token, term=5)


async def test_who_does_not_lead_extends_and_resigns_nothing(agent: Agent, election: str) -> None:
    won = await agent.campaign(election, term=5)
    for wrong in (won.token - 1, won.token + 1):
        with pytest.raises(Lost):
            await agent.extend(election, wrong, term=5)
    await agent.resign(election, won.token)
    with pytest.raises(Lost) as raised:
        await agent.resign(election, won.token)
    assert raised.value.reason is LostReason.NO_TERM
    with pytest.raises(Lost):
        await agent.handover(election, "next", term=5, leader=agent.candidate, token=won.token)


async def test_tokens_are_verified(agent: Agent, election: str) -> None:
    won = await agent.campaign(election, term=5)
    verified = await agent.verify(election, won.token)
    assert verified.current and verified.reason is None and verified.valid_until is not None
    assert verified.state is not None and verified.state.token == won.token
    future = await agent.verify(election, won.token + 1000)
    assert not future.current and future.reason is NotCurrent.NOT_GRANTED and future.valid_until is None


async def test_listings_have_all_pages(agent: Agent) -> None:
    kind = "pages"
    for part in range(0, 1_100, 100):
        await asyncio.gather(
            *(agent.campaign(f"page-{number}", term=30, kind=kind) for number in range(part, part + 100))
        )
    listed = await agent.leaders(kind=kind)
    assert len(listed.leaders) == 1_100 and not listed.incomplete
    assert kind in (await agent.kinds()).kinds
    everything = await agent.leaders(all_kinds=True)
    assert len(everything.leaders) >= 1_100


async def test_an_observer_tells_who_leads_and_why(agent: Agent, other: Agent, election: str) -> None:
    observer = other.observe(election)
    events = observer.events()
    first = await events.__anext__()
    assert isinstance(first, State) and not first.is_held and first.cause is Cause.PRESENT
    assert isinstance(await events.__anext__(), Synced)
    async with agent.lead(election) as term:
        held = await events.__anext__()
        assert isinstance(held, State) and held.token == term.token and held.cause is Cause.CAMPAIGN
        assert held.leader is not None and held.leader.name == agent.candidate
    vacant = await events.__anext__()
    assert isinstance(vacant, State) and vacant.cause is Cause.RESIGN and vacant.token == term.token
    await observer.close()


async def test_observers_of_a_prefix_a_kind_and_all(agent: Agent, election: str) -> None:
    async with agent.lead(election, kind=f"k-{election}"):
        for observer in (
            agent.observe(kind=f"k-{election}", prefix=election[:6]),
            agent.observe(kind=f"k-{election}"),
            agent.observe(all_kinds=True),
        ):
            async for state in observer:
                if state.election == election:
                    assert state.leader is not None and state.leader.name == agent.candidate
                    break


async def test_an_observer_says_when_nobody_answers(servers: Any, election: str) -> None:
    server: Server = servers()
    async with Agent(server.address) as agent:
        observer = agent.observe(election)
        assert isinstance(await observer.next(), State)
        assert isinstance(await observer.next(), Synced)
        server.stop()
        doubt = await observer.next()
        assert isinstance(doubt, Certainty) and not doubt.certain and doubt.reason
        assert not observer.certain
        await observer.close()


async def test_a_slow_reader_goes_on_when_it_reads(agent: Agent, election: str) -> None:
    observer = agent.observe(election)
    await observer.next()
    for _ in range(40):
        won = await agent.campaign(election, term=5)
        await agent.resign(election, won.token)
    # Not more than a few wait in the client.
    assert len(observer._events) <= 16
    tokens = [0]
    for _ in range(17):
        event = await observer.next()
        if isinstance(event, State):
            tokens.append(event.token)
    assert tokens == sorted(tokens)
    won = await agent.campaign(election, term=5)

    async def told() -> bool:
        event = await observer.next()
        return isinstance(event, State) and event.is_held and event.token == won.token

    await eventually(told)
    await observer.close()


async def test_an_agent_refuses_with_a_code(agent: Agent) -> None:
    with pytest.raises(Refused) as raised:
        await agent.pods("default", deployment="web")
    assert raised.value.code is Code.UNIMPLEMENTED and raised.value.message
    with pytest.raises(Refused) as raised:
        async with agent.lead("long", term=3600):
            pass
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert "INVALID_ARGUMENT" in str(raised.value)


async def test_an_observer_that_is_refused_says_so(servers: Any) -> None:
    server = servers(EA_MAX_STREAMS="1")
    async with Agent(server.address) as first, Agent(server.address) as second:
        observer = first.observe("e")
        await observer.next()
        with pytest.raises(Refused) as raised:
            await second.observe("e").next()
        assert raised.value.code is Code.RESOURCE_EXHAUSTED
        await observer.close()


async def test_no_agent_is_unreachable_and_a_silent_one_not_known(servers: Any) -> None:
    server: Server = servers()
    async with Agent(server.address, timeout=0.5) as agent:
        assert await agent.kinds()
        server.signal(signal.SIGSTOP)
        with pytest.raises(NotKnown):
            await agent.campaign("e", term=5)
        with pytest.raises(NotKnown):
            await agent.kinds()
        server.stop()
    async with Agent(server.address, timeout=0.5) as agent:
        for call in (agent.campaign("e", term=5), agent.kinds()):
            with pytest.raises(Unreachable) as raised:
                await call
            assert server.address in str(raised.value) and "refused" in str(raised.value).lower()
    async with Agent("no-such-host.invalid:1", timeout=0.5) as agent:
        with pytest.raises(Unreachable) as raised:
            await agent.kinds()
        assert "no-such-host.invalid:1" in str(raised.value)


@pytest.mark.parametrize(
    "endpoints",
    ["", " , ", "a:99999", "a:0", "a:", "http://[::1]:x", "ftp://a", "a:1/path", "http://", "a b:1", "::1"],
)
def test_what_is_no_endpoint_is_refused(endpoints: str) -> None:
    for kind in (Agent, SyncAgent):
        with pytest.raises(ConfigError) as raised:
            kind(endpoints)
        assert endpoints.strip(" ,") in str(raised.value)


def test_the_error_of_an_endpoint_does_not_have_its_password() -> None:
    with pytest.raises(ConfigError, match="user name") as raised:
        Agent("https://user:secret@a:1")
    assert "secret" not in str(raised.value) and "a:1" in str(raised.value)


@pytest.mark.parametrize("endpoints", [None, 5, b"a:1", [], [None], [b"a"], "a\nb:1"])
def test_endpoints_of_other_types_are_refused(endpoints: Any) -> None:
    for kind in (Agent, SyncAgent):
        with pytest.raises(ConfigError):
            kind(endpoints)


@pytest.mark.parametrize("endpoints", ["a", "a:1", "https://[::1]", "http://[::1]:65535", ["a:1", "b:2"], "a:1, b:2"])
def test_what_is_an_endpoint_is_taken(endpoints: Any) -> None:
    Agent(endpoints)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"term": 0.5}, "at least 1 s"),
        ({"term": -1}, "0 or more"),
        ({"term": math.nan}, "0 or more"),
        ({"term": math.inf}, "too long"),
        ({"term": 1e9}, "too long"),
        ({"term": 10**400}, "too long"),
        ({"wait": -(10**400)}, "0 or more"),
        ({"value": "\ud800"}, "UTF-8"),
        ({"value": b"x"}, "give a string"),
        ({"term": "15s"}, "seconds or a timedelta"),
        ({"term": True}, "seconds or a timedelta"),
        ({"margin": 8}, "at most half"),
        ({"wait": -0.1}, "0 or more"),
        ({"grace": datetime.timedelta(seconds=-1)}, "0 or more"),
        ({"kind": "a/b"}, '"/"'),
        ({"kind": None}, "give a string"),
        ({"election": ""}, "empty"),
        ({"election": "a/b"}, '"/"'),
        ({"election": "x" * 257}, "at most 256"),
        ({"election": "a\nb"}, "control characters"),
        ({"election": "\ud800"}, "UTF-8"),
        ({"candidate": ""}, "empty"),
        ({"candidate": 7}, "give a string"),
        ({"value": "x" * 1025}, "at most 1024"),
        ({"alive": True}, "give a function"),
        ({"on_lost": "call me"}, "give a function"),
        ({"on_state": asyncio.sleep}, "coroutine function"),
    ],
)
def test_bad_input_is_told_before_anything_is_sent(arguments: dict[str, Any], words: str) -> None:
    for agent in (Agent("nowhere.invalid:1"), SyncAgent("nowhere.invalid:1")):
        for make in (agent.lead, agent.terms):
            with pytest.raises(ConfigError, match=words):
                make(**{"election": "e", **arguments})
        assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("token", [0, -1, 2**53, True, "7", 1.5, None])
async def test_what_is_no_token_is_refused(token: Any) -> None:
    agent = Agent("nowhere.invalid:1")
    for call in (
        agent.verify("e", token),
        agent.extend("e", token, term=5),
        agent.resign("e", token),
    ):
        with pytest.raises(ConfigError, match="fencing token"):
            await call


async def test_arguments_of_calls_are_checked_before_anything_is_sent() -> None:
    agent: Any = Agent("nowhere.invalid:1")
    for call in (
        agent.leaders(kind=5),
        agent.leaders(kind="a/b"),
        agent.leaders(kind=None),
        agent.pods(5, deployment="d"),
        agent.pods("", pod="p"),
        agent.pods("n", deployment=5),
        agent.pods("n", pod="\ud800"),
        agent.campaign("e", term=5, value="\ud800"),
        agent.campaign("e", term=5, wait=10**400),
        agent.verify("e", 1, kind=5),
    ):
        with pytest.raises(ConfigError):
            await call


def test_a_wait_without_an_end_is_one() -> None:
    agent = Agent("nowhere.invalid:1")
    for wait in (math.inf, 10**400, datetime.timedelta.max):
        agent.lead("e", wait=wait, grace=wait)


def test_wrong_settings_of_an_agent_are_refused(tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    for arguments, words in (
        ({"token": "t"}, "not encrypted"),
        ({"token_file": empty}, "not encrypted"),
        ({"token_from": lambda: "t"}, "not encrypted"),
        ({"ca_file": empty}, "no certificate"),
        ({"ca_file": tmp_path / "none"}, "No such file"),
        ({"cert_file": empty}, "together"),
        ({"token": "t", "token_file": empty}, "one of"),
        ({"token": "a b"}, "characters"),
        ({"token": ""}, "empty"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": math.inf}, "too long"),
        ({"timeout": 10**400}, "too long"),
        ({"ca_file": 5}, "path of a file"),
        # Would be taken for standard input.
        ({"token_file": 0}, "path of a file"),
        ({"token_file": ""}, "path of a file"),
        ({"cert_file": b"c", "key_file": b"k"}, "path of a file"),
        ({"server_name": 5}, "server_name"),
        ({"server_name": ""}, "server_name"),
        ({"token_from": "t"}, "give a function"),
        ({"candidate": "a\tb"}, "control characters"),
        ({"server_name": "localhost"}, "https://agent:80"),
    ):
        with pytest.raises(ConfigError, match=words):
            Agent("agent:80", **arguments)
    with pytest.raises(ConfigError):
        Agent("agent").observe()
    with pytest.raises(ConfigError):
        Agent("agent").observe("e", prefix="p")
    with pytest.raises(ConfigError):
        Agent("agent").observe(kind="k", all_kinds=True)
    with pytest.raises(ConfigError):
        Agent("agent").leader_only("e")(lambda: None)  # type: ignore[arg-type, return-value]


def test_all_errors_have_one_base() -> None:
    for error in (
        ConfigError("x"),
        Lost(LostReason.NO_TERM),
        NotKnown("x"),
        Refused(Code.NOT_FOUND, "x"),
        Unreachable([]),
    ):
        assert isinstance(error, ElectionAgentError) and str(error)


def test_a_wall_clock_that_is_ahead_is_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    minute = 60 * 10**9
    assert not _clock.ahead(minute, minute + 650_000_000)
    assert _clock.ahead(minute, minute + 651_000_000)
    assert not _clock.ahead(minute, 0)
    assert _clock.COUNTS_SUSPENSION
    monkeypatch.setattr(_clock, "COUNTS_SUSPENSION", False)
    anchor = _clock.Anchor()
    assert not anchor.has_jumped()
    anchor.wall -= minute
    assert anchor.has_jumped()


async def test_a_jump_is_a_loss_where_clocks_do_not_count_suspension(
    monkeypatch: pytest.MonkeyPatch, agent: Agent, election: str
) -> None:
    monkeypatch.setattr(_clock, "COUNTS_SUSPENSION", False)
    with pytest.raises(Lost) as raised:
        async with agent.lead(election) as term:
            term._state.anchor.wall -= 60 * 10**9
            term.check()
    assert raised.value.reason is LostReason.CLOCK_JUMPED
