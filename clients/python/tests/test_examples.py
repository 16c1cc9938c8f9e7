"""The examples, and what the README shows."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import PYTHON, Server, lines

from election_agent_client import Agent, ConfigError, Lost, LostReason, SyncAgent, SyncTerm, Term

EXAMPLES = PYTHON / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError(f"it ends without {words!r}: {seen}")


def stop(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> str:
    process.send_signal(number)
    return process.communicate(timeout=30)[0]


def test_lead(server: Server) -> None:
    one = start(str(EXAMPLES / "lead.py"), server.address)
    until(one, "leading with token")
    two = start(str(EXAMPLES / "lead.py"), server.address)
    # As one ends by a signal, its body is cancelled, and it resigns.
    stop(one, signal.SIGINT)
    until(two, "leading with token")
    stop(two, signal.SIGINT)


def test_a_former_leader_overwrites_nothing(server: Server, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "reports.db")
    example = str(EXAMPLES / "fencing.py")
    first, second = (
        lines(subprocess.run([sys.executable, example, server.address, path], capture_output=True, text=True))[0]
        for _ in range(2)
    )
    fencing = load("fencing")
    db = fencing.connect(path)
    former, present = (int(text.split()[-1]) for text in (first, second))
    assert former < present
    # Paused since it had looked at its clock.
    with pytest.raises(fencing.Fenced):
        fencing.report(db, former, "overwritten")
    assert db.execute("SELECT body FROM report").fetchall() == [(second,)]
    fencing.report(db, present, "again")
    assert db.execute("SELECT body FROM report").fetchall() == [("again",)]
    db.close()


def test_a_job_of_apscheduler_runs_on_one_process(server: Server) -> None:
    example = str(EXAMPLES / "with_apscheduler.py")
    one = start(example, server.address)
    leader = until(one, "ran with token")
    two = start(example, server.address, "2")
    # The second has scheduled its job ten times, and run none.
    assert "ran with token" not in two.communicate(timeout=30)[0]
    assert until(one, "ran with token") == leader, "the leadership is held between runs"
    three = start(example, server.address)
    stop(one, signal.SIGINT)
    successor = until(three, "ran with token")
    assert int(successor.split()[-1]) > int(leader.split()[-1])
    stop(three, signal.SIGINT)


def test_celery_beat_sends_on_one_process(server: Server, tmp_path: pathlib.Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "control").mkdir()
    environment = {
        "CELERY_FOLDER": str(tmp_path),
        "ELECTION_AGENT_URL": server.address,
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
    }

    def beat(name: str) -> subprocess.Popen[str]:
        return start(
            *("-m", "celery", "-A", "with_celery_beat", "beat", "--loglevel", "DEBUG"),
            *("--scheduler", "with_celery_beat:LeadingScheduler"),
            *("--schedule", str(tmp_path / name), "--pidfile", str(tmp_path / f"{name}.pid")),
            **environment,
        )

    def sent() -> list[int]:
        tokens = []
        for file in (tmp_path / "queue").glob("*.msg"):
            try:
                tokens.append(json.loads(file.read_text())["headers"]["fencing-token"])
            except ValueError:
                continue  # It is being written.
        return sorted(set(tokens))

    one = beat("one")
    until(one, "leads with token")
    two = beat("two")
    try:
        until(two, "waits: not elected")
        until(two, "waits: not elected")
        assert len(sent()) == 1
        stop(one, signal.SIGTERM)
        until(two, "leads with token")
        patience = time.monotonic() + 20
        while len(sent()) < 2 and time.monotonic() < patience:
            time.sleep(0.05)
        assert len(sent()) == 2
    finally:
        stop(two, signal.SIGTERM)


async def test_a_function_runs_on_the_leader_only(server: Server, election: str) -> None:
    runs: list[str] = []
    async with Agent(server.address) as one:
        async with Agent(server.address) as two:

            @one.leader_only(election)
            async def first(word: str, term: Term) -> str:
                """What it does."""
                term.check()
                runs.append(word)
                return word

            @two.leader_only(election)
            async def second(word: str) -> str:
                runs.append(word)
                return word

            assert first.__doc__ == "What it does."
            assert await first("a") == "a"
            assert await second("b") is None
            assert await asyncio.gather(first("c"), first("d")) == ["c", "d"]
            await one.close()
            assert await second("e") == "e"
    assert runs == ["a", "c", "d", "e"]


async def test_a_function_of_the_leader_is_cancelled_at_the_loss_and_runs_again(agent: Agent, election: str) -> None:
    fences = True

    @agent.leader_only(election, term=1.5, candidate="same")
    async def job() -> str:
        if fences:
            await agent.campaign(election, term=1.5, candidate="same")
            await asyncio.sleep(60)
        return "ran"

    with pytest.raises(Lost) as raised:
        await job()
    assert raised.value.reason is LostReason.STALE_TOKEN
    fences = False
    assert await job() == "ran"


def test_a_plain_function_runs_on_the_leader_only(server: Server, election: str) -> None:
    with SyncAgent(server.address) as one:
        with SyncAgent(server.address) as two:

            @one.leader_only(election)
            def first(term: SyncTerm) -> int:
                return term.token

            @two.leader_only(election)
            def second() -> str:
                return "ran"

            token = first()
            assert token and first() == token
            assert second() is None
            one.close()
            assert second() == "ran"

            with pytest.raises(ConfigError):

                @two.leader_only(election)
                async def third() -> None: ...


def test_the_readmes_programs_run(server: Server, tmp_path: pathlib.Path) -> None:
    readme = (PYTHON / "README.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(programs) >= 4
    for program in programs:
        if "https://" in program:
            # Addresses and files that only their readers have.
            compile(program, "README.md", "exec")
            continue
        (tmp_path / "program.py").write_text(program.replace("localhost:8080", server.address))
        done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{program}\n{done.stderr}"


def test_the_worked_example_of_fencing(server: Server, tmp_path: pathlib.Path) -> None:
    """What the README promises of it: a former leader that goes on writes nothing."""
    readme = (PYTHON / "README.md").read_text()
    program = next(
        found for found in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "sqlite3" in found
    )
    (tmp_path / "fenced.py").write_text(program.replace("localhost:8080", server.address))
    for _ in range(2):
        lines(subprocess.run([sys.executable, "fenced.py"], cwd=tmp_path, capture_output=True, text=True))
    db = sqlite3.connect(tmp_path / "reports.db")
    (fence,) = db.execute("SELECT token FROM fence").fetchone()
    former = db.execute("UPDATE fence SET token = ? WHERE election = 'nightly' AND token <= ?", (fence - 1, fence - 1))
    assert former.rowcount == 0
    db.close()
