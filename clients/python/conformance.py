"""The conformance program of the Python client: clients/conformance/README.md has the protocol.

`--sync` plays the synchronous twin. `--mutant NAME` has the library make a fault, which a scenario has to find.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import sys
import threading
import time
from typing import Any, Optional

import election_agent_client as client

READ_AT = time.CLOCK_BOOTTIME
TICK = 0.02
_out = threading.Lock()


def now() -> int:
    return time.clock_gettime_ns(READ_AT)


def event(name: str, id: int, at: Optional[int] = None, **fields: Any) -> None:
    """Writes a report. A driver that has gone is no reason to go on."""
    with _out:
        # Under the lock: reports are in the order of time.
        line = {"event": name, "id": id, "at": now() if at is None else at}
        line.update((key, value) for key, value in fields.items() if value is not None)
        try:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
        except OSError:
            os._exit(1)


def hold(seconds: float) -> None:
    """Blocks all of Python: a call into C that does not let other threads run."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


class Orders:
    """What commands say to a body."""

    def __init__(self) -> None:
        self.alive = True
        self.block = 0.0
        self.end = threading.Event()


class Program:
    """What both twins do."""

    def __init__(self) -> None:
        self._orders: dict[int, Orders] = {}
        self._lock = threading.Lock()

    def orders(self, id: int) -> Orders:
        with self._lock:
            return self._orders.setdefault(id, Orders())

    def command(self, command: dict[str, Any]) -> None:
        do, id = command["do"], command.get("id", 0)
        if do == "end_body":
            self.orders(id).end.set()
        elif do == "block":
            self.orders(id).block = command["ms"] / 1000
        elif do == "alive":
            self.orders(id).alive = command["alive"]
        else:
            self.work(do, command)

    def work(self, do: str, command: dict[str, Any]) -> None:
        raise NotImplementedError

    def run(self) -> None:
        event("ready", 0)
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "quit":
                break
            self.command(command)
        # At once: nothing is given up.
        os._exit(0)

    def arguments(self, command: dict[str, Any]) -> dict[str, Any]:
        id, orders = command["id"], self.orders(command["id"])

        def on_state(standing: client.Standing) -> None:
            if isinstance(standing, client.Resigned):
                event("resigned", id)
            elif isinstance(standing, client.ExtensionRefused):
                event("refused", id, reason=standing.message)

        arguments: dict[str, Any] = {
            "election": command["election"],
            "kind": command["kind"],
            "candidate": command["candidate"],
            "term": command["term_ms"] / 1000,
            "grace": command["grace_ms"] / 1000,
            "on_state": on_state,
            "on_jeopardy": lambda _: event("jeopardy", id),
            "on_lost": lambda why: event("lost", id, reason=why.value.lower()),
        }
        if command.get("asks_alive"):
            arguments["alive"] = lambda: orders.alive
        for name in ("wait", "margin"):
            if command.get(f"{name}_ms") is not None:
                arguments[name] = command[f"{name}_ms"] / 1000
        return arguments


def failed(id: int, error: client.ElectionAgentError) -> None:
    kinds = (
        (client.NotElected, "not_elected"),
        (client.Lost, "lost"),
        (client.NotKnown, "not_known"),
        (client.Refused, "refused"),
        (client.Unreachable, "unreachable"),
        (client.ConfigError, "config"),
    )
    event("error", id, reason=next(name for kind, name in kinds if isinstance(error, kind)))


def act(id: int, term: Any) -> None:
    at = now()
    until = term.valid_until
    try:
        term.check()
    except client.Lost:
        return
    event("acting", id, at, token=term.token, valid_until=until)


def observed(id: int, seen: client.Event) -> None:
    if isinstance(seen, client.State):
        event(
            "state",
            id,
            phase="held" if seen.is_held else "vacant",
            cause=seen.cause.value.lower(),
            token=seen.token,
            leader=seen.leader and seen.leader.name,
        )
    elif isinstance(seen, client.Synced):
        event("synced", id)
    else:
        event("certainty", id, certain=seen.certain, reason=seen.reason)


def verified(id: int, result: client.Verified) -> None:
    event("verified", id, current=result.current, reason=result.reason and result.reason.value.lower())


class Asynchronous(Program):
    """Plays `Agent`: everything on one event loop, so that a body that blocks blocks all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.agent: Optional[client.Agent] = None
        self.tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def work(self, do: str, command: dict[str, Any]) -> None:
        if do == "connect":
            self.agent = client.Agent(command["agents"])
            return
        assert self.agent is not None, "`connect` comes first"
        play = {"lead": self.leads, "observe": self.observes, "verify": self.verifies}[do]

        def begin(agent: client.Agent) -> None:
            task = self.loop.create_task(play(agent, command))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

        self.loop.call_soon_threadsafe(begin, self.agent)

    async def leads(self, agent: client.Agent, command: dict[str, Any]) -> None:
        id = command["id"]
        try:
            async with agent.lead(**self.arguments(command)) as term:
                try:
                    await self.body(id, term, command["body"])
                finally:
                    event("body_ended", id)
        except client.ElectionAgentError as error:
            failed(id, error)
        else:
            event("done", id)

    async def body(self, id: int, term: client.Term, kind: str) -> None:
        event("leading", id, token=term.token, valid_until=term.valid_until)
        orders = self.orders(id)
        ignored = False
        renewals = asyncio.ensure_future(self.renewals(id, term))
        try:
            while not orders.end.is_set():
                act(id, term)
                block, orders.block = orders.block, 0.0
                if block:
                    time.sleep(block)  # noqa: ASYNC251 that is the point
                    act(id, term)
                try:
                    await asyncio.sleep(TICK)
                except asyncio.CancelledError:
                    if kind == "cooperative" or ignored:
                        raise
                    ignored = True
        finally:
            renewals.cancel()

    async def renewals(self, id: int, term: client.Term) -> None:
        try:
            while True:
                event("renewed", id, valid_until=await term.renewed())
        except client.Lost:
            pass

    async def observes(self, agent: client.Agent, command: dict[str, Any]) -> None:
        id = command["id"]
        try:
            async for seen in agent.observe(command["election"], kind=command["kind"]).events():
                observed(id, seen)
        except client.ElectionAgentError as error:
            failed(id, error)

    async def verifies(self, agent: client.Agent, command: dict[str, Any]) -> None:
        id = command["id"]
        try:
            verified(id, await agent.verify(command["election"], command["token"], kind=command["kind"]))
        except client.ElectionAgentError as error:
            failed(id, error)


class Synchronous(Program):
    """Plays `SyncAgent`: a thread for each command."""

    def __init__(self) -> None:
        super().__init__()
        self.agent: Optional[client.SyncAgent] = None

    def work(self, do: str, command: dict[str, Any]) -> None:
        if do == "connect":
            self.agent = client.SyncAgent(command["agents"])
            return
        assert self.agent is not None, "`connect` comes first"
        play = {"lead": self.leads, "observe": self.observes, "verify": self.verifies}[do]
        threading.Thread(target=play, args=(self.agent, command), daemon=True).start()

    def leads(self, agent: client.SyncAgent, command: dict[str, Any]) -> None:
        id = command["id"]
        try:
            with agent.lead(**self.arguments(command)) as term:
                try:
                    self.body(id, term, command["body"])
                finally:
                    event("body_ended", id)
        except client.ElectionAgentError as error:
            failed(id, error)
        else:
            event("done", id)

    def body(self, id: int, term: client.SyncTerm, kind: str) -> None:
        event("leading", id, token=term.token, valid_until=term.valid_until)
        orders = self.orders(id)
        ended = threading.Event()
        renewals = threading.Thread(target=self.renewals, args=(id, term, ended), daemon=True)
        renewals.start()
        try:
            while not orders.end.is_set():
                act(id, term)
                block, orders.block = orders.block, 0.0
                if block:
                    hold(block)
                    act(id, term)
                if kind == "cooperative":
                    term.sleep(TICK)
                else:
                    time.sleep(TICK)
        finally:
            ended.set()

    def renewals(self, id: int, term: client.SyncTerm, ended: threading.Event) -> None:
        try:
            while not ended.is_set():
                until = term.wait_renewed(0.5)
                if until is not None:
                    event("renewed", id, valid_until=until)
        except client.Lost:
            pass

    def observes(self, agent: client.SyncAgent, command: dict[str, Any]) -> None:
        id = command["id"]
        try:
            for seen in agent.observe(command["election"], kind=command["kind"]).events():
                observed(id, seen)
        except client.ElectionAgentError as error:
            failed(id, error)

    def verifies(self, agent: client.SyncAgent, command: dict[str, Any]) -> None:
        id = command["id"]
        try:
            verified(id, agent.verify(command["election"], command["token"], kind=command["kind"]))
        except client.ElectionAgentError as error:
            failed(id, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sync", action="store_true", help="play the synchronous twin")
    parser.add_argument("--mutant", help="the fault to make")
    arguments = parser.parse_args()
    logging.basicConfig(level=os.environ.get("CONFORMANCE_LOG", "INFO"), format="%(asctime)s %(levelname)s %(message)s")
    if arguments.mutant is not None:
        import conformance_mutants

        conformance_mutants.apply(arguments.mutant)
    (Synchronous() if arguments.sync else Asynchronous()).run()


if __name__ == "__main__":
    main()
