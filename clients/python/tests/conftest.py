"""Real agents for tests, and what stands between them and the client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Optional, TypeVar

import pytest

from election_agent_client import Agent, SyncAgent

PYTHON = pathlib.Path(__file__).resolve().parent.parent
REPOSITORY = PYTHON.parent.parent
START = 20.0
PATIENCE = 20.0
"""For conditions that come at once on a machine with nothing else to do, in seconds."""

Result = TypeVar("Result")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and programs that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def binary() -> str:
    named = os.environ.get("ELECTION_AGENT_BINARY")
    path = pathlib.Path(named) if named else REPOSITORY / "target/debug/election-agent"
    if not path.is_file():
        raise FileNotFoundError(f"there is no agent at {path}: build it, or name it by ELECTION_AGENT_BINARY")
    return str(path)


class Server:
    """A running agent, in memory unless its settings say otherwise."""

    def __init__(self, **settings: str) -> None:
        environment = {
            "EA_ENV": "development",
            "EA_LOG_LEVEL": "info",
            "EA_STORE": "memory",
            "EA_KUBE_ENABLE": "false",
            "EA_BIND_ADDRESS": "127.0.0.1",
            "EA_HTTP_PORT": "0",
            "EA_GRPC_PORT": "0",
            **settings,
        }
        self.process = subprocess.Popen(
            [binary()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            assert self.process.stderr is not None
            with self.process.stderr as stderr:
                for line in stderr:
                    self.log.append(line)
                    lines.put(line)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        until = time.monotonic() + START
        while True:
            try:
                line = lines.get(timeout=max(0.1, until - time.monotonic()))
            except queue.Empty:
                self.stop()
                raise AssertionError(f"the agent does not listen: {self.log}") from None
            found = re.search(r"127\.0\.0\.1:(\d+)", line) if "listening" in line else None
            if found:
                self.port = int(found.group(1))
                self.address = f"127.0.0.1:{self.port}"
                return

    def signal(self, number: int) -> None:
        """Sends a signal. After SIGSTOP the agent has stopped: until a thread has seen it, all go on to answer."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """An agent that all tests share: each has elections of its own."""
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    """Starts agents of a test's own."""
    started: list[Server] = []

    def start(**settings: str) -> Server:
        started.append(Server(**settings))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def election() -> str:
    return f"e-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def agent(server: Server) -> AsyncIterator[Agent]:
    async with Agent(server.address) as made:
        yield made


@pytest.fixture
async def other(server: Server) -> AsyncIterator[Agent]:
    async with Agent(server.address) as made:
        yield made


@pytest.fixture
def sync_agent(server: Server) -> Iterator[SyncAgent]:
    with SyncAgent(server.address) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread of the library outlives a test that closes its agents."""
    yield
    left: list[str] = []
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        left = [thread.name for thread in threading.enumerate() if thread.name in ("election-loop", "election-hooks")]
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(f"threads are left: {left}")


async def eventually(condition: Callable[[], Awaitable[Optional[Result]]]) -> Result:
    """What a condition returns at last."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        result = await condition()
        if result:
            return result
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come about")


class Proxy:
    """A TCP proxy that passes bytes on, or not."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._passes = threading.Event()
        self._passes.set()
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._refuses = False
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._lock:
                if self._refuses:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                self._passes.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Nothing passes any more."""
        self._passes.clear()

    def heal(self) -> None:
        with self._lock:
            self._refuses = False
        self._passes.set()

    def refuse(self) -> None:
        """Connections end, and there are no new ones."""
        with self._lock:
            self._refuses = True
            ends, self._open = self._open, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.refuse()
        self._passes.set()


@pytest.fixture
def proxies() -> Iterator[Callable[[Server], Proxy]]:
    made: list[Proxy] = []

    def make(server: Server) -> Proxy:
        made.append(Proxy(server.port))
        return made[-1]

    yield make
    for each in made:
        each.close()


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def lines(done: subprocess.CompletedProcess[Any]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return str(done.stdout).splitlines()
