"""Several agents, older agents, encryption and credentials."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import ipaddress
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from conftest import REPOSITORY, Server, binary, eventually
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from election_agent_client import Agent, Code, ConfigError, Lost, NotElected, NotKnown, Refused, SyncAgent, Unreachable

# Several agents.


async def test_another_agent_goes_on_with_a_term_within_a_second(server: Server, proxies: Any, election: str) -> None:
    first, second = proxies(server), proxies(server)
    async with Agent(f"{first.address},{second.address}") as agent:
        async with agent.lead(election, term=1.5) as term:
            await term.renewed()
            for gone, other in ((first, second), (second, first)):
                other.heal()
                gone.refuse()
                failed = time.monotonic()
                await term.renewed()
                await term.renewed()
                assert time.monotonic() - failed < 2
                term.check()
            assert first.connections and second.connections


async def test_a_silent_endpoint_costs_no_term(server: Server, proxies: Any, election: str) -> None:
    silent, good = proxies(server), proxies(server)
    silent.hold()
    async with Agent([silent.address, good.address]) as agent:
        async with agent.lead(election, term=1.5) as term:
            for _ in range(4):
                await term.renewed()
        assert (await agent.verify(election, term.token)).current is False
    silent.heal()


async def test_a_name_with_several_addresses_is_several_endpoints(server: Server, election: str) -> None:
    # Of localhost, agents of this test listen at 127.0.0.1 only.
    async with Agent(f"localhost:{server.port}") as agent:
        async with agent.lead(election):
            pass


async def test_an_agent_that_ends_sends_its_leaders_to_another(servers: Any, election: str) -> None:
    # Both keep leases of their own: what matters is that the other is asked.
    one, two = servers(), servers()
    async with Agent(f"{one.address},{two.address}") as agent:
        with pytest.raises(Lost):
            async with agent.lead(election, term=1.5) as term:
                await term.renewed()
                one.signal(signal.SIGTERM)
                await asyncio.sleep(60)
        async with agent.lead(election) as term:
            assert (await agent.state(election)).token == term.token


# An agent of 0.1.0: the calls and fields of its contract, before a real agent.

CALLS = {
    "Campaign": ("CampaignRequest", "CampaignResult"),
    "ExtendElectedTerm": ("ExtendElectedTermRequest", "BoolValue"),
    "Resign": ("ResignRequest", "BoolValue"),
    "Handover": ("HandoverRequest", "BoolValue"),
    "GetLeader": ("GetLeaderRequest", "StringValue"),
    "ListLeaders": ("ListLeadersRequest", "Leaders"),
    "GetPods": ("GetPodsRequest", "Pods"),
}


class OldAgent(grpc.GenericRpcHandler):
    """Offers what version 0.1.0 did: requests and answers lose all fields that it did not have."""

    def __init__(self, server: Server, compiled: bytes) -> None:
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
            pool.Add(file)
        self._messages = {
            name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.election_agent.v1.{name}"))
            for names in CALLS.values()
            for name in names
        }
        self._channel = grpc.insecure_channel(server.address)
        self.called: list[str] = []
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        service, _, call = details.method.rpartition("/")
        self.called.append(call)
        if service != "/grpc.election_agent.v1.Election" or call not in CALLS:
            return None
        request_class, answer_class = (self._messages[name] for name in CALLS[call])

        def known(kind: Any, data: bytes) -> bytes:
            message = kind.FromString(data)
            message.DiscardUnknownFields()
            return bytes(message.SerializeToString())

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                answered = self._channel.unary_unary(details.method)(known(request_class, request), timeout=5)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise
            return known(answer_class, answered)

        return grpc.unary_unary_rpc_method_handler(answer)

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()


@pytest.fixture
def old(server: Server, tmp_path: pathlib.Path) -> Iterator[OldAgent]:
    compiled = tmp_path / "contract"
    contract = REPOSITORY / "tests/integration/fixtures/v0_1_0"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{contract}",
            f"--descriptor_set_out={compiled}",
            "election_agent.proto",
        ],
        check=True,
    )
    agent = OldAgent(server, compiled.read_bytes())
    yield agent
    agent.stop()


async def test_an_agent_of_0_1_0_is_led_by_calls(old: OldAgent, election: str) -> None:
    async with Agent(old.address) as agent, Agent(old.address) as other:
        async with agent.lead(election, term=1.5) as term:
            began = term.valid_until
            while await term.renewed() < began + 1_500_000_000:
                pass
            # The allowance for clock drift, which that agent leaves to its callers.
            assert term.remaining() <= 1.5 * 0.99 - 0.002
            with pytest.raises(NotElected) as raised:
                async with other.lead(election, wait=0.3):
                    pass
            assert raised.value.leader == agent.candidate
            waits = asyncio.create_task(_token(other, election))
            await asyncio.sleep(0.2)
        assert await waits > term.token
        assert {"Lead", "Campaign", "ExtendElectedTerm", "Resign"} <= set(old.called)
        # One that has no streams is not asked for one each time.
        assert old.called.count("Lead") <= 3
        listed = await agent.leaders()
        assert election not in [leader.election for leader in listed.leaders]
        for newer in (agent.state(election), agent.verify(election, term.token), agent.observe(election).next()):
            with pytest.raises(Refused) as refused:
                await newer
            assert refused.value.code is Code.UNIMPLEMENTED


async def _token(agent: Agent, election: str) -> int:
    async with agent.lead(election) as term:
        return term.token


async def test_an_agent_of_0_1_0_fences(old: OldAgent, election: str) -> None:
    async with Agent(old.address) as agent:
        with pytest.raises(Lost):
            async with agent.lead(election, term=1.5, candidate="same"):
                await agent.campaign(election, term=5, candidate="same")
                await asyncio.sleep(60)


async def test_streams_are_not_used_when_they_are_not_wanted(old: OldAgent, election: str) -> None:
    async with Agent(old.address, streams=False) as agent, agent.lead(election, term=1.5) as term:
        await term.renewed()
    assert "Lead" not in old.called


# Encryption.


class Files:
    """An authority, and files with certificates that it has signed."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {directory.name}")])
        self._authority = self._sign(self._name, self._key.public_key(), None)
        self.write("ca.pem", self._authority.public_bytes(serialization.Encoding.PEM))
        self.make("server", ["localhost"])
        self.make("client", ["batch"])

    def _sign(self, name: x509.Name, key: Any, names: Any, days: int = 1) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )
        if names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def make(self, file: str, names: list[str], days: int = 1) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        general: list[x509.GeneralName] = []
        for name in names:
            try:
                general.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                general.append(x509.DNSName(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = self._sign(subject, key.public_key(), general, days)
        self.write(f"{file}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.write(f"{file}.key", pem)

    def write(self, file: str, content: bytes) -> None:
        (self.directory / file).write_bytes(content)

    def path(self, file: str) -> str:
        return str(self.directory / file)

    def settings(self) -> dict[str, str]:
        return {"EA_TLS_CERT_FILE": self.path("server.pem"), "EA_TLS_KEY_FILE": self.path("server.key")}


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    return Files(tmp_path / "files")


async def test_an_agent_is_reached_by_tls(servers: Callable[..., Server], files: Files) -> None:
    server = servers(**files.settings())
    ca = files.path("ca.pem")
    async with Agent(f"https://localhost:{server.port}", ca_file=ca) as agent:
        async with agent.lead("nightly") as term:
            assert term.token > 0
    by_address = f"https://127.0.0.1:{server.port}"
    async with Agent(by_address, ca_file=ca, server_name="localhost") as agent:
        await agent.kinds()
    async with Agent(by_address, ca_file=ca, timeout=0.5) as agent:
        with pytest.raises(Unreachable) as raised:
            await agent.kinds()
        assert "127.0.0.1" in str(raised.value)
    async with Agent(f"https://localhost:{server.port}", timeout=0.5) as stranger:
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.kinds()


async def test_a_certificate_for_an_address_is_good_for_it(servers: Callable[..., Server], files: Files) -> None:
    files.make("server", ["127.0.0.1"])
    server = servers(**files.settings())
    async with Agent(f"https://127.0.0.1:{server.port}", ca_file=files.path("ca.pem")) as agent:
        await agent.kinds()


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [(["localhost"], -1, "CERTIFICATE_VERIFY_FAILED"), (["other.example"], 1, "(?i)peer name|hostname")],
)
async def test_a_certificate_that_has_expired_or_is_anothers_is_refused(
    servers: Callable[..., Server], files: Files, names: list[str], days: int, words: str
) -> None:
    files.make("server", names, days)
    server = servers(**files.settings())
    async with Agent(f"https://localhost:{server.port}", ca_file=files.path("ca.pem"), timeout=0.5) as agent:
        with pytest.raises(Unreachable, match=words):
            await agent.kinds()
        with pytest.raises(Unreachable, match=words):
            async with agent.lead("nightly", wait=0):
                pass


async def test_who_mixes_up_encryption_is_told(server: Server, servers: Callable[..., Server], files: Files) -> None:
    encrypted = servers(**files.settings())
    async with Agent(f"http://127.0.0.1:{encrypted.port}", timeout=0.5) as agent:

        async def told() -> bool:
            with pytest.raises((Unreachable, NotKnown)) as raised:
                await agent.kinds()
            return "https://" in str(raised.value)

        await eventually(told)
    async with Agent(f"https://127.0.0.1:{server.port}", ca_file=files.path("ca.pem"), timeout=0.5) as agent:
        with pytest.raises(Unreachable, match="http://"):
            await agent.kinds()


async def test_an_agent_knows_by_mtls_who_asks(servers: Callable[..., Server], files: Files) -> None:
    server = servers(**files.settings(), EA_TLS_CLIENT_CA_FILE=files.path("ca.pem"), EA_AUTH_MODES="mtls")
    endpoint, ca = f"https://localhost:{server.port}", files.path("ca.pem")
    async with Agent(endpoint, ca_file=ca, timeout=0.5) as nobody:
        with pytest.raises((Unreachable, NotKnown, Refused)):
            await nobody.kinds()
    pair = {"cert_file": files.path("client.pem"), "key_file": files.path("client.key")}
    async with Agent(endpoint, ca_file=ca, candidate="batch", **pair) as agent:
        async with agent.lead("nightly"):
            pass
        with pytest.raises(Refused) as raised:
            async with agent.lead("nightly", candidate="somebody else"):
                pass
        assert raised.value.code is Code.PERMISSION_DENIED


async def test_a_certificate_that_is_replaced_is_shown_from_then_on(
    servers: Callable[..., Server], files: Files, tmp_path: pathlib.Path
) -> None:
    others = Files(tmp_path / "others")
    server = servers(**files.settings(), EA_TLS_CLIENT_CA_FILE=files.path("ca.pem"), EA_AUTH_MODES="mtls")
    shown = {name: tmp_path / name for name in ("client.pem", "client.key")}

    def replace(source: Files, name: str) -> None:
        shown[name].write_bytes(pathlib.Path(source.path(name)).read_bytes())

    for name in shown:
        replace(others, name)
    async with Agent(
        f"https://localhost:{server.port}",
        ca_file=files.path("ca.pem"),
        cert_file=shown["client.pem"],
        key_file=shown["client.key"],
        timeout=1,
    ) as agent:
        with pytest.raises((Unreachable, NotKnown)):
            await agent.kinds()
        # In the middle of being replaced, they do not belong together, and those before are shown.
        replace(files, "client.pem")
        with pytest.raises((Unreachable, NotKnown)):
            await agent.kinds()
        replace(files, "client.key")

        async def known() -> bool:
            try:
                await agent.kinds()
            except (Unreachable, NotKnown):
                return False
            return True

        await eventually(known)


def test_a_certificate_and_a_key_that_do_not_belong_together_are_refused(files: Files) -> None:
    with pytest.raises(ConfigError, match="no certificate and its key"):
        Agent(
            "https://agent",
            ca_file=files.path("ca.pem"),
            cert_file=files.path("client.pem"),
            key_file=files.path("server.key"),
        )


# Bearer tokens.


def new_token(name: str) -> tuple[str, str]:
    """A line of the agent's file, and the token."""
    made = subprocess.run([binary(), "token", "new", name], capture_output=True, text=True, check=True)
    found = re.search(r"TOKEN=(\S+)", made.stderr)
    assert found is not None, made.stderr
    return made.stdout, found.group(1)


@pytest.fixture
def guarded(servers: Callable[..., Server], files: Files, tmp_path: pathlib.Path) -> tuple[Server, list[str]]:
    """An agent with TLS that knows two tokens of `batch`, and both."""
    made = [new_token("batch"), new_token("batch")]
    known = tmp_path / "tokens"
    known.write_text("".join(line for line, _ in made))
    server = servers(**files.settings(), EA_AUTH_MODES="token", EA_AUTH_TOKEN_FILE=str(known))
    return server, [token for _, token in made]


async def test_tokens_are_static_from_a_file_or_from_a_function(
    guarded: tuple[Server, list[str]], files: Files, tmp_path: pathlib.Path
) -> None:
    server, (good, other) = guarded
    endpoint, ca = f"https://localhost:{server.port}", files.path("ca.pem")
    async with Agent(endpoint, ca_file=ca) as nobody:
        with pytest.raises(Refused) as raised:
            await nobody.kinds()
        assert raised.value.code is Code.UNAUTHENTICATED
    async with Agent(endpoint, ca_file=ca, candidate="batch", token=good) as agent:
        async with agent.lead("nightly"):
            pass

    file = tmp_path / "token"
    async with Agent(endpoint, ca_file=ca, token_file=file, timeout=1) as agent:
        with pytest.raises(Unreachable, match="token file"):
            await agent.kinds()
        file.write_text("wrong-token\n")
        with pytest.raises(Refused):
            await agent.kinds()
        file.write_text(f"{good}\n")
        await agent.kinds()
        file.write_text("wrong-token")
        with pytest.raises(Refused):
            await agent.kinds()
        file.write_text(other)
        await agent.kinds()
        # It may be in the middle of being replaced.
        file.write_text("")
        await agent.kinds()
        file.unlink()
        await agent.kinds()

    asked = 0

    async def coroutine() -> str:
        nonlocal asked
        asked += 1
        return good

    for source in (coroutine, lambda: good):
        async with Agent(endpoint, ca_file=ca, token_from=source) as agent:
            await agent.kinds()
            await agent.kinds()
    assert asked == 2

    def fails() -> str:
        raise OSError("the issuer is away")

    async with Agent(endpoint, ca_file=ca, token_from=fails, timeout=1) as agent:
        with pytest.raises(Unreachable, match="the issuer is away"):
            await agent.kinds()
    with SyncAgent(endpoint, ca_file=ca, token_from=coroutine) as sync_agent:
        sync_agent.kinds()


async def test_a_token_that_changes_while_leading_is_used(
    guarded: tuple[Server, list[str]], files: Files, tmp_path: pathlib.Path
) -> None:
    server, (good, other) = guarded
    file = tmp_path / "token"
    file.write_text(good)
    async with Agent(
        f"https://localhost:{server.port}",
        ca_file=files.path("ca.pem"),
        candidate="batch",
        token_file=file,
        streams=False,
    ) as agent:
        async with agent.lead("nightly", term=1.5) as term:
            await term.renewed()
            file.write_text(other)
            await term.renewed()
            await term.renewed()


async def test_a_token_is_sent_in_plain_text_only_when_the_caller_says_so(
    servers: Callable[..., Server], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, token = new_token("batch")
    (tmp_path / "tokens").write_text(line)
    server = servers(EA_AUTH_MODES="token", EA_AUTH_TOKEN_FILE=str(tmp_path / "tokens"))
    with pytest.raises(ConfigError, match="allow_plaintext_token"):
        Agent(server.address, token=token)
    async with Agent(server.address, token=token, allow_plaintext_token=True) as agent:
        await agent.kinds()
    assert "not encrypted" in caplog.text and token not in caplog.text


async def test_proxies_of_the_environment_are_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Agent(server.address) as agent:
        await agent.kinds()
