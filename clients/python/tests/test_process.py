"""Forks, other event loops, and what the package needs of its process."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from conftest import PYTHON, REPOSITORY, Server, lines, run

import election_agent_client
from election_agent_client import Agent, SyncAgent

FORKS = """
import os, sys
from election_agent_client import ConfigError, Lost, SyncAgent

agent = SyncAgent(sys.argv[1])

def child_of(term):
    assert term.remaining() == 0
    try:
        term.check()
    except Lost as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError("it may act")
    for use in (
        lambda: agent.kinds(),
        lambda: agent.lead("x"),
        lambda: agent.observe("x"),
        lambda: agent.__enter__(),
        lambda: agent.terms("x"),
    ):
        try:
            use()
        except ConfigError as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("it may be used")
    agent.close()

is_child = False
try:
    with agent.lead(sys.argv[2], term=1) as term:
        child = os.fork()
        if child == 0:
            is_child = True
            child_of(term)
            # Leaves the body.
            raise SystemExit
        assert os.waitpid(child, 0)[1] == 0
        # The child has ended, and given nothing up.
        for _ in range(2):
            assert term.wait_renewed(10)
        term.check()
        assert agent.verify(sys.argv[2], term.token).current
        print("leads on", flush=True)
except SystemExit:
    assert is_child
    # gRPC's own end of a process may crash in a child.
    os._exit(0)
print("ended", flush=True)
"""


def test_a_forked_child_does_not_act_extend_or_resign(server: Server, election: str) -> None:
    assert lines(run(FORKS, server.address, election)) == ["leads on", "ended"]


FORKS_ON_A_LOOP = """
import asyncio, os, sys, time
from election_agent_client import Agent, ConfigError, Lost

async def main():
    agent = Agent(sys.argv[1])
    async with agent.lead(sys.argv[2], term=1) as term:
        child = os.fork()
        if child == 0:
            # asyncio does not go on with a loop in a child, but the coroutine does until it pauses.
            time.sleep(1)
            assert term.remaining() == 0
            try:
                await agent.kinds()
            except ConfigError:
                os._exit(0)
            os._exit(1)
        for _ in range(5):
            await term.renewed()
        assert os.waitpid(child, 0)[1] == 0
        assert (await agent.verify(sys.argv[2], term.token)).current
        print("leads on")
    await agent.close()

asyncio.run(main())
"""


def test_a_child_that_is_forked_on_the_event_loop_does_not_lead(server: Server, election: str) -> None:
    assert lines(run(FORKS_ON_A_LOOP, server.address, election)) == ["leads on"]


POOL = """
import multiprocessing, sys
from election_agent_client import Lost, SyncAgent

def work(term):
    try:
        term.check()
    except Lost:
        return "does not lead"

def child(connection):
    connection.send(work(term))

with SyncAgent(sys.argv[1]) as agent, agent.lead(sys.argv[2], term=1) as term:
    context = multiprocessing.get_context("fork")
    for _ in range(10):
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,))
        process.start()
        process.join()
        assert process.exitcode == 0, process.exitcode
        assert here.recv() == "does not lead"
        here.close()
        there.close()
    term.check()
    print("leads on")
"""


def test_a_leader_has_work_done_by_children(server: Server, election: str) -> None:
    assert lines(run(POOL, server.address, election)) == ["leads on"]


ORPHAN = """
import os, signal, sys, time
from election_agent_client import SyncAgent

agent = SyncAgent(sys.argv[1])
with agent.lead(sys.argv[2], term=1) as term:
    child = os.fork()
    if child == 0:
        # The test reads until these are closed.
        os.close(1)
        os.close(2)
        time.sleep(600)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_term_of_a_parent_that_dies_lapses_although_its_child_lives(server: Server, election: str) -> None:
    died = run(ORPHAN, server.address, election)
    assert died.returncode == -9, died.stderr
    child = int(died.stdout)
    try:
        with SyncAgent(server.address) as agent, agent.lead(election, wait=20):
            # It lives, and keeps what it has of its parent's connections.
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


PREFORK = """
import os, sys
from election_agent_client import SyncAgent

# As a server does that imports the application before it forks its workers.
shared = SyncAgent(sys.argv[1])
workers = []
for number in range(3):
    worker = os.fork()
    if worker == 0:
        with SyncAgent(sys.argv[1]) as agent, agent.lead(sys.argv[2]) as term:
            os.write(1, b"%d\\n" % term.token)
        os._exit(0)
    workers.append(worker)
for worker in workers:
    assert os.waitpid(worker, 0)[1] == 0
"""


def test_workers_that_are_forked_make_agents_of_their_own(server: Server, election: str) -> None:
    tokens = list(map(int, lines(run(PREFORK, server.address, election))))
    assert len(set(tokens)) == 3


FORKED_LATE = """
import os, sys
from election_agent_client import Agent, ConfigError, SyncAgent

with SyncAgent(sys.argv[1]) as agent:
    agent.kinds()

child = os.fork()
if child == 0:
    own = SyncAgent(sys.argv[1])
    for use in (own.kinds, lambda: own.lead("x"), own.__enter__, lambda: own.observe("x"), lambda: own.terms("x")):
        try:
            use()
        except ConfigError as error:
            assert "spawn" in str(error)
        else:
            os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
agent.kinds()
agent.close()
print("works on")
"""


def test_who_forks_after_the_first_call_is_told_in_the_child(server: Server) -> None:
    assert lines(run(FORKED_LATE, server.address)) == ["works on"]


SPAWNED = """
import multiprocessing, sys
from election_agent_client import SyncAgent

def work(address, election):
    with SyncAgent(address) as agent, agent.lead(election, wait=30) as term:
        print(term.token > 0, flush=True)

if __name__ == "__main__":
    with SyncAgent(sys.argv[1]) as agent:
        agent.kinds()
        processes = [
            multiprocessing.get_context(method).Process(target=work, args=sys.argv[1:])
            for method in ("spawn", "forkserver")
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
"""


def test_processes_that_are_not_forked_use_agents(server: Server, election: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "spawned.py").write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, "spawned.py", server.address, election], cwd=tmp_path, capture_output=True, text=True
    )
    assert lines(done) == ["True", "True"]


UVLOOP = """
import asyncio, sys
import uvloop
from election_agent_client import Agent, Lost

async def main():
    async with Agent(sys.argv[1]) as agent:
        async with agent.lead(sys.argv[2], term=1.5) as term:
            await term.renewed()
        observer = agent.observe(sys.argv[2])
        assert not (await observer.next()).is_held
        await observer.close()
        try:
            async with agent.lead(sys.argv[2], term=1.5, candidate="same"):
                await agent.campaign(sys.argv[2], term=1.5, candidate="same")
                await asyncio.sleep(60)
        except Lost as lost:
            print(lost.reason.value)

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy()) if sys.version_info < (3, 11) else None
if sys.version_info >= (3, 11):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
else:
    asyncio.run(main())
"""


def test_it_works_on_uvloop(server: Server, election: str) -> None:
    pytest.importorskip("uvloop", reason="uvloop is not for this system")
    assert lines(run(UVLOOP, server.address, election)) == ["STALE_TOKEN"]


TRACES = """
import asyncio, sys
from election_agent_client import Agent, _credentials

assert "opentelemetry" not in sys.modules, "importing the client loads no OpenTelemetry"
assert _credentials.trace() == ()
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
with trace.get_tracer("test").start_as_current_span("job") as span:
    (name, value), = _credentials.trace()
    assert name == "traceparent" and format(span.get_span_context().trace_id, "032x") in value
    print("propagates")
"""


def test_the_trace_context_is_propagated_if_there_is_one() -> None:
    assert lines(run(TRACES)) == ["propagates"]


async def test_calls_carry_the_trace_context(server: Server, election: str) -> None:
    import grpc
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    seen: list[str] = []

    class Catch(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> None:
            seen.extend(str(value) for key, value in details.invocation_metadata if key == "traceparent")

    import concurrent.futures

    catcher = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[Catch()])
    port = catcher.add_insecure_port("127.0.0.1:0")
    catcher.start()
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("asynchronous") as first:
        async with Agent(f"127.0.0.1:{port}", timeout=0.5) as agent:
            with pytest.raises(election_agent_client.Refused):
                await agent.kinds()
    with tracer.start_as_current_span("synchronous") as second, SyncAgent(f"127.0.0.1:{port}", timeout=0.5) as twin:
        with pytest.raises(election_agent_client.Refused):
            twin.kinds()
    catcher.stop(0).wait()
    ids = [trace.format_trace_id(span.get_span_context().trace_id) for span in (first, second)]
    assert [value.split("-")[1] for value in seen] == ids


CONFLICT = """
import sys
from google.protobuf import descriptor_pb2, descriptor_pool

# What a program has that generated code from another version of the contract.
file = descriptor_pb2.FileDescriptorProto(
    name="election_agent/v1/election_agent.proto", package="grpc.election_agent.v1", syntax="proto3"
)
file.message_type.add(name="BoolValue").field.add(name="value", number=1, type=8, label=1)
descriptor_pool.Default().Add(file)
import election_agent_client
from election_agent_client._proto import election_agent_pb2

print(election_agent_pb2.BoolValue(valid_for=7).valid_for, election_agent_pb2.State.HELD)
"""


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_other_code_of_the_same_contract_is_no_conflict(implementation: str) -> None:
    done = run(CONFLICT, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation)
    assert lines(done) == ["7 1"]


def test_the_version_is_the_agents() -> None:
    workspace = (REPOSITORY / "Cargo.toml").read_text()
    found = re.search(r'^version = "([^"]+)"', workspace, re.MULTILINE)
    assert found is not None
    version = found.group(1)
    assert election_agent_client.__version__ == version
    assert election_agent_client._pool.VERSION == version
    assert f'version = "{version}"' in (PYTHON / "pyproject.toml").read_text()


def test_exported_names_exist_and_are_documented() -> None:
    for name in election_agent_client.__all__:
        exported = getattr(election_agent_client, name)
        assert exported.__doc__ or name in ("Event", "Standing"), f"{name} has no documentation"


def test_there_is_no_way_to_fetch_a_token_for_a_leaders_writes() -> None:
    for kind in (Agent, SyncAgent):
        assert not [name for name in dir(kind) if not name.startswith("_") and "token" in name]


def test_the_types_are_published() -> None:
    package = pathlib.Path(election_agent_client.__file__).parent
    assert (package / "py.typed").is_file()
