"""Measures the client with a real agent, beside goals.

python bench.py AGENT [lines] [import] [elections] [resignation]: AGENT is the agent's binary.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from election_agent_client import Agent

ELECTIONS = 1_000
SECONDS = 30.0
ROUNDS = 200


@contextmanager
def agent(binary: str) -> Iterator[str]:
    """An agent in memory: its address."""
    environment = {
        "EA_ENV": "development",
        "EA_STORE": "memory",
        "EA_KUBE_ENABLE": "false",
        "EA_LOG_LEVEL": "info",
        "EA_BIND_ADDRESS": "127.0.0.1",
        "EA_HTTP_PORT": "0",
        "EA_GRPC_PORT": "0",
    }
    process = subprocess.Popen([binary], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    found = None
    for line in process.stderr:
        found = re.search(r"127\.0\.0\.1:\d+", line) if "listening" in line else None
        if found:
            break
    try:
        assert found is not None, "the agent does not listen"
        yield found.group()
    finally:
        process.kill()
        process.communicate()


def tell(what: str, value: float, unit: str, goal: float) -> bool:
    print(f"{what}: {value:.1f} {unit} (goal: at most {goal:g} {unit}){'' if value <= goal else '  MISSED'}")
    return value <= goal


def measure_lines() -> bool:
    """Lines of a correct program that leads, without empty ones."""
    readme = pathlib.Path(__file__).with_name("README.md").read_text()
    program = readme.partition("```python\n")[2].partition("```")[0]
    return tell("a program that leads", len([line for line in program.splitlines() if line.strip()]), "lines", 5)


def measure_import() -> bool:
    taken = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import election_agent_client"], capture_output=True, text=True
        )
        taken.append(int(done.stderr.strip().splitlines()[-1].split("|")[1]) / 1000)
    return tell("import, median of 5", statistics.median(taken), "ms", 250)


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def lead_many(address: str) -> bool:
    """CPU of a process that leads 1,000 elections by one stream."""
    async with Agent(address) as client:
        end = asyncio.Event()
        leading = asyncio.Semaphore(0)

        async def lead(number: int) -> None:
            async with client.lead(f"bench-{number}", term=15) as term:
                leading.release()
                await end.wait()
                term.check()

        tasks = [asyncio.create_task(lead(number)) for number in range(ELECTIONS)]
        for _ in tasks:
            await leading.acquire()
        # What they were granted first is not what is measured.
        await asyncio.sleep(5)
        before, began = used(), time.monotonic()
        await asyncio.sleep(SECONDS)
        share = (used() - before) / (time.monotonic() - began) * 100
        end.set()
        await asyncio.gather(*tasks)
    return tell(f"{ELECTIONS} elections with terms of 15 s", share, "% of a core", 5)


async def resignations(address: str) -> bool:
    """From another's resignation, counted from when its call is sent, to the body of a candidate that waits."""
    loop = asyncio.get_running_loop()
    taken = []
    async with Agent(address) as one, Agent(address) as two:
        for number in range(ROUNDS):
            election = f"resign-{number}"
            won = await one.campaign(election, term=15)
            waits = asyncio.Event()

            def told(_: object, waits: asyncio.Event = waits) -> None:
                loop.call_soon_threadsafe(waits.set)

            async def follow(election: str = election, told: Callable[[object], None] = told) -> int:
                async with two.lead(election, on_state=told):
                    return time.monotonic_ns()

            task = asyncio.create_task(follow())
            await waits.wait()
            sent = time.monotonic_ns()
            await one.resign(election, won.token)
            taken.append((await task - sent) / 1e6)
    taken.sort()
    print(f"from a resignation to the next body: p50 {taken[len(taken) // 2]:.1f} ms, largest {taken[-1]:.1f} ms")
    return tell("from a resignation to the next body, p99", taken[int(len(taken) * 0.99) - 1], "ms", 80)


def main() -> None:
    binary, parts = sys.argv[1], sys.argv[2:] or ["lines", "import", "elections", "resignation"]
    good = True
    if "lines" in parts:
        good &= measure_lines()
    if "import" in parts:
        good &= measure_import()
    with agent(binary) as address:
        if "elections" in parts:
            good &= asyncio.run(lead_many(address))
        if "resignation" in parts:
            good &= asyncio.run(resignations(address))
    sys.exit(os.EX_OK if good else 1)


if __name__ == "__main__":
    main()
