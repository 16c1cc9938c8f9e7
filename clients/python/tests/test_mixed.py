"""Agents of several versions side by side, and agents that refuse."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Iterator
from typing import Any, Optional

import grpc
import pytest
from conftest import Server, eventually

from election_agent_client import (
    Agent,
    Certainty,
    Code,
    ExtensionRefused,
    Lost,
    LostReason,
    NotKnown,
    Refused,
    Standing,
    State,
    Unreachable,
)
from election_agent_client._proto import election_agent_pb2 as pb


class Picky(grpc.GenericRpcHandler):
    """Passes calls on to an agent, and refuses some: by their names, with a code. It offers no streams."""

    def __init__(self, server: Server, refuses: Optional[dict[str, grpc.StatusCode]] = None) -> None:
        self._channel = grpc.insecure_channel(server.address)
        self.refuses = {} if refuses is None else refuses
        self.called: list[str] = []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        call = details.method.rpartition("/")[2]
        self.called.append(call)
        if call in ("Lead", "Observe"):
            return None

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if call in self.refuses:
                context.abort(self.refuses[call], f"{call} is refused")
            try:
                return bytes(self._channel.unary_unary(details.method)(request, timeout=5))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise

        return grpc.unary_unary_rpc_method_handler(answer)

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()


class Brief(Picky):
    """Ends streams as soon as they are open."""

    def service(self, details: Any) -> Any:
        answered = super().service(details)
        if answered is not None:
            return answered
        if details.method.endswith("/Lead"):
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, _: iter([pb.LeadEvent(welcome=pb.Welcome(agent="brief"))]),
                pb.LeadRequest.FromString,
                pb.LeadEvent.SerializeToString,
            )
        return grpc.unary_stream_rpc_method_handler(
            lambda request, _: iter([pb.Observation(synced=pb.Synced())]),
            pb.ObserveRequest.FromString,
            pb.Observation.SerializeToString,
        )


OLD = {name: grpc.StatusCode.UNIMPLEMENTED for name in ("VerifyToken", "GetElection", "ListKinds")}


@pytest.fixture
def pickies(server: Server) -> Iterator[Callable[..., Picky]]:
    made: list[Picky] = []

    def make(kind: type[Picky] = Picky, **refuses: grpc.StatusCode) -> Picky:
        made.append(kind(server, refuses))
        return made[-1]

    yield make
    for each in made:
        each.stop()


async def test_streams_that_end_as_soon_as_they_are_open_are_left_to_calls(
    pickies: Callable[..., Picky], election: str
) -> None:
    brief = pickies(Brief)
    async with Agent(brief.address) as agent, agent.lead(election, term=1.5) as term:
        await term.renewed()
        assert (brief.called.count("Lead"), brief.called.count("Campaign")) == (2, 1)


async def test_an_observer_pauses_before_streams_that_end_at_once(pickies: Callable[..., Picky], election: str) -> None:
    brief = pickies(Brief)
    async with Agent(brief.address) as agent, agent.observe(election) as observer:
        began = time.monotonic()
        events = observer.events()
        await events.__anext__()

        async def opened() -> bool:
            return brief.called.count("Observe") >= 5

        await eventually(opened)
        # At least half of 50, 100, 200 and 400 ms.
        assert time.monotonic() - began >= 0.375
        await events.aclose()


@pytest.mark.parametrize("old_is_first", [True, False])
async def test_what_an_old_agent_does_not_offer_another_does(
    server: Server, pickies: Callable[..., Picky], election: str, old_is_first: bool
) -> None:
    old = pickies(**OLD)
    endpoints = [old.address, server.address] if old_is_first else [server.address, old.address]
    async with Agent(endpoints) as agent:
        async with agent.lead(election, term=1.5) as term:
            for _ in range(3):
                await term.renewed()
            assert (await agent.verify(election, term.token)).current
            assert (await agent.state(election)).token == term.token
            assert (await agent.kinds()).kinds
            async with agent.observe(election) as observer:
                state = await observer.next()
                assert isinstance(state, State) and state.token == term.token


async def test_what_no_agent_offers_is_refused(pickies: Callable[..., Picky], election: str) -> None:
    old = [pickies(**OLD).address, pickies(**OLD).address]
    async with Agent([*old, "127.0.0.1:1"]) as agent, Agent(old) as watches:
        for call in (agent.verify(election, 1), agent.state(election), agent.kinds(), watches.observe(election).next()):
            began = time.monotonic()
            with pytest.raises(Refused) as raised:
                await call
            assert raised.value.code is Code.UNIMPLEMENTED
            assert time.monotonic() - began < 9, "it has tried until its time was over"


async def test_an_observer_waits_for_an_agent_that_may_be_newer(
    server: Server, pickies: Callable[..., Picky], proxies: Any, election: str
) -> None:
    proxy = proxies(server)
    proxy.refuse()
    async with Agent([pickies(**OLD).address, proxy.address]) as agent, agent.observe(election) as observer:
        events = observer.events()
        doubt = await events.__anext__()
        assert isinstance(doubt, Certainty) and "UNIMPLEMENTED" in doubt.reason and proxy.address in doubt.reason
        proxy.heal()
        assert isinstance(await events.__anext__(), State)
        await events.aclose()


async def test_an_observer_outlives_that_only_an_old_agent_is_there(
    server: Server, pickies: Callable[..., Picky], proxies: Any, election: str
) -> None:
    proxy = proxies(server)
    async with Agent([proxy.address, pickies(**OLD).address]) as agent, agent.observe(election) as observer:
        events = observer.events()
        assert isinstance(await events.__anext__(), State)
        await events.__anext__()
        proxy.refuse()
        doubt = await events.__anext__()
        assert isinstance(doubt, Certainty) and not doubt.certain
        async with Agent(server.address) as other, other.lead(election) as term:
            proxy.heal()
            async for event in events:
                if isinstance(event, State):
                    assert event.token == term.token
                    break
        await events.aclose()


async def test_a_term_goes_on_when_only_an_old_agent_is_left(
    server: Server, pickies: Callable[..., Picky], proxies: Any, election: str
) -> None:
    proxy = proxies(server)
    async with Agent([proxy.address, pickies(**OLD).address]) as agent:
        async with agent.lead(election, term=1.5) as term:
            await term.renewed()
            proxy.refuse()
            for _ in range(3):
                await term.renewed()


async def test_a_refused_extension_is_reported_and_no_loss_by_itself(
    pickies: Callable[..., Picky], election: str
) -> None:
    async def leads(code: grpc.StatusCode) -> None:
        picky = pickies()
        standings: list[Standing] = []

        async def is_told() -> bool:
            return any(isinstance(each, ExtensionRefused) and each.code.value == code.name for each in standings)

        async with Agent(picky.address) as agent:
            async with agent.lead(f"{election}-{code.value[0]}", term=2, on_state=standings.append) as term:
                await term.renewed()
                picky.refuses["ExtendElectedTerm"] = code
                await eventually(is_told)
                term.check()
                # A credential that was replaced, say: the same term goes on.
                del picky.refuses["ExtendElectedTerm"]
                await term.renewed()
                await term.renewed()
                assert not term.in_jeopardy

    codes = grpc.StatusCode
    await asyncio.gather(
        *map(leads, (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED, codes.INVALID_ARGUMENT, codes.UNIMPLEMENTED))
    )


async def test_a_term_that_is_refused_until_its_end_is_over_by_the_clock(
    pickies: Callable[..., Picky], election: str
) -> None:
    picky = pickies()
    with pytest.raises(Lost) as raised:
        async with Agent(picky.address) as agent, agent.lead(election, term=1) as term:
            picky.refuses["ExtendElectedTerm"] = grpc.StatusCode.PERMISSION_DENIED
            until = term.valid_until
            await asyncio.sleep(60)
    assert raised.value.reason is LostReason.TERM_OVER and until


@pytest.mark.parametrize("wait", [0, 0.5, None])
@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
async def test_a_refused_campaign_is_refused_at_once(
    pickies: Callable[..., Picky], election: str, code: str, wait: Optional[float]
) -> None:
    async with Agent(pickies(Campaign=grpc.StatusCode[code]).address) as agent:
        with pytest.raises(Refused, match="Campaign is refused") as raised:
            async with agent.lead(election, wait=wait):
                pass
        assert raised.value.code.value == code


async def test_who_waits_waits_for_room(pickies: Callable[..., Picky], election: str) -> None:
    picky = pickies(Campaign=grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with Agent(picky.address) as agent:
        with pytest.raises(Refused) as raised:
            async with agent.lead(election, wait=0.5):
                pass
        assert raised.value.code is Code.RESOURCE_EXHAUSTED
        # It has not asked without a pause.
        assert picky.called.count("Campaign") < 10

        async def lead() -> None:
            async with agent.lead(election, wait=30):
                pass

        leading = asyncio.create_task(lead())

        async def asked() -> bool:
            return picky.called.count("Campaign") > 3

        await eventually(asked)
        picky.refuses.clear()
        await leading


async def test_an_agent_that_says_nothing_leaves_the_outcome_unknown(
    server: Server, proxies: Any, election: str
) -> None:
    proxy = proxies(server)
    proxy.hold()
    async with Agent(proxy.address, timeout=0.5) as agent:
        with pytest.raises((NotKnown, Unreachable)):
            async with agent.lead(election, wait=0.5):
                pass
        with pytest.raises((NotKnown, Unreachable)):
            await agent.kinds()
        proxy.heal()
        async with agent.lead(election, wait=20):
            pass
