"""Connections to the agents, and the routing of a call from one to the next.

Each address has channels of its own. One address that answered last is preferred; when it fails, or keeps silent for a
while, the others are tried at once. A channel whose call got no answer in time is replaced, as its connection may be
dead: HTTP/2's own keep-alive, which agents allow every 20 s at most, detects that later.

A pool belongs to an event loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import random
import re
import socket
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Optional, TypeVar

import grpc
import grpc.aio

from . import _clock, _threads
from ._credentials import Metadata, NoToken, Tls, Tokens
from .errors import Code, ConfigError, ElectionAgentError, NotKnown, Refused, Unreachable, listed

if TYPE_CHECKING:
    from google.protobuf.message import Message

VERSION = "0.1.0"
SERVICE = "/grpc.election_agent.v1."
CONNECT_MS = 2_000
"""How long a connection may take."""
KEEP_ALIVE_MS = 20_000
"""Agents cut connections that are pinged more often than every 18 s."""
KEEP_ALIVE_ANSWER_MS = 10_000
RESOLVED_FOR = 30.0
"""How long the addresses of names are good, in seconds."""
RESOLVE = 2.0
"""How long a name may take to be resolved, in seconds."""
WAITS_A_CHANNEL = 500
"""Agents accept 1000 streams a connection: waiting calls leave room for others."""

NO_TOKEN = "there was no token in time"

Answered = TypeVar("Answered", bound="Message")


class Route(NamedTuple):
    """An address to which calls go."""

    endpoint: int
    ip: str
    port: int


class Endpoint:
    """An endpoint as it was configured."""

    def __init__(self, text: str, tls: Tls) -> None:
        """Raises `ConfigError`: why this is no endpoint."""
        try:
            self._parse(text)
        except ValueError as error:
            # Not the password, if that is what is wrong.
            shown = re.sub(r"[^/,]*@", "...@", text)
            raise ConfigError(f"the endpoint {shown if shown.isprintable() else repr(shown)}: {error}") from None
        self.tls = tls if self.is_encrypted else None
        self._lookup = _threads.Once("election-names")
        if tls.any() and not self.is_encrypted:
            raise ConfigError(
                f"the endpoint {text} is not encrypted, but ca_file, cert_file or server_name is given:"
                f" write https://{self.authority}"
            )

    def _parse(self, text: str) -> None:
        self.label = text
        if re.search(r"[\s\x00-\x1f]", text):
            raise ValueError(f"{text!r} has white space")
        if text.count(":") > 1 and _is_address(text):
            raise ValueError(f"write [{text}], and the port after it")
        url = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
        if url.scheme not in ("http", "https"):
            raise ValueError("the scheme is neither http nor https")
        self.is_encrypted = url.scheme == "https"
        if url.path not in ("", "/") or url.query or url.fragment or "?" in text or "#" in text:
            raise ValueError("an endpoint has no path")
        if "@" in url.netloc:
            raise ValueError("an endpoint has no user name")
        if not url.hostname:
            raise ValueError("there is no host")
        self.host = url.hostname
        named = url.netloc.rpartition("]")[2] if "]" in url.netloc else url.netloc
        try:
            port = url.port
        except ValueError:
            port = 0
        if port == 0 or (port is None and ":" in named):
            raise ValueError(f"there is no port {named.rpartition(':')[2]!r}: 1 to 65535")
        if not re.fullmatch(r"[A-Za-z0-9._~:%-]+", self.host):
            raise ValueError(f"{self.host!r} is no name of a host")
        self.port = port or (443 if self.is_encrypted else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = f"{host}:{self.port}"
        try:
            self.ip: Optional[str] = str(ipaddress.ip_address(self.host))
        except ValueError:
            self.ip = None

    async def resolve(self) -> list[tuple[str, int]]:
        """The addresses of the endpoint's name. Raises `OSError` or `asyncio.TimeoutError`."""
        if self.ip is not None:
            return [(self.ip, self.port)]
        lookup = self._lookup.run(lambda: socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
        found = await asyncio.wait_for(asyncio.wrap_future(lookup), RESOLVE)
        addresses = list(dict.fromkeys((str(address[4][0]), self.port) for address in found))
        # So that the clients of several agents behind a name spread over them.
        random.shuffle(addresses)
        return addresses

    def channel(self, route: Route) -> grpc.aio.Channel:
        """A channel to one of its addresses. It connects when it is used."""
        # gRPC checks the certificate of the host that calls name.
        named = self.tls.server_name if self.tls is not None else None
        options: list[tuple[str, Any]] = [
            ("grpc.default_authority", self.authority if named is None else f"{named}:{self.port}"),
            ("grpc.primary_user_agent", f"election-agent-client-python/{VERSION}"),
            # Another channel to the same address has another connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            # It is how long a connection may take, too.
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEP_ALIVE_ANSWER_MS),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ]
        family = "ipv6" if ":" in route.ip else "ipv4"
        host = f"[{route.ip}]" if ":" in route.ip else route.ip
        target = f"{family}:{host}:{route.port}"
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        options.append(("grpc.ssl_target_name_override", named or self.host))
        return grpc.aio.secure_channel(target, self.tls.credentials(), options=options)

    def version(self) -> int:
        """Which version of the files of certificates new connections use."""
        return 0 if self.tls is None else self.tls.version()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Lane(NamedTuple):
    """One of an endpoint's channels: short calls never queue behind those that wait."""

    waits: bool
    number: int


CALLS = Lane(False, 0)


class Connection:
    """A channel, as long as somebody uses it."""

    def __init__(self, pool: Pool, key: tuple[Route, Lane], channel: grpc.aio.Channel) -> None:
        self.key = key
        self.channel = channel
        self.users = 0
        self.discarded = False
        self._pool = pool
        self._methods: dict[str, Any] = {}

    def unary(self, method: str, answer: type[Answered]) -> Any:
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = self.channel.unary_unary(
                SERVICE + method, request_serializer=_serialize, response_deserializer=answer.FromString
            )
        return known

    def stream(self, method: str, answer: type[Answered]) -> Any:
        return self.channel.stream_stream(
            SERVICE + method, request_serializer=_serialize, response_deserializer=answer.FromString
        )

    def answers(self, method: str, answer: type[Answered]) -> Any:
        return self.channel.unary_stream(
            SERVICE + method, request_serializer=_serialize, response_deserializer=answer.FromString
        )

    def release(self) -> None:
        self.users -= 1
        if self.users == 0 and self.discarded:
            self._pool.close_channel(self.channel)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


class WaitLane:
    """The lane for a call that waits, until it is left."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.lane = Lane(True, pool.waits // WAITS_A_CHANNEL)
        pool.waits += 1
        self._left = False

    def leave(self) -> None:
        if not self._left:
            self._left = True
            self._pool.waits -= 1


@dataclass
class Plan:
    """How a call is tried. Times are those of the event loop."""

    within: float
    """When to give up, in seconds from now."""
    attempt: float
    """How long one attempt may take, in seconds."""
    hedge: Optional[float] = None
    """After how many seconds of silence another address is tried beside the first. Not for what must not run twice at
    once."""
    again: bool = True
    """Whether to go round the addresses again when all have failed."""
    rounds: float = math.inf
    """How often to go round them at the most."""
    lane: Lane = CALLS

    @staticmethod
    def idempotent(within: float) -> Plan:
        """A call that may be repeated as often as one likes, and run several times at once."""
        return Plan(within, min(max(within / 2, 0.25), within), hedge=min(within / 4, 0.3))

    @staticmethod
    def one_by_one(within: float) -> Plan:
        """A call that is repeated only after the previous attempt has ended."""
        return Plan(within, min(max(within / 3, 0.9), within))


@dataclass
class Answer(Generic[Answered]):
    """An answer."""

    value: Answered
    sent: int
    """An instant before the request was sent, by the clock of terms."""
    anchor: _clock.Anchor
    uncertain: bool
    """An earlier attempt may have taken effect, or may take effect later."""


@dataclass
class _Tried:
    label: str
    why: str
    unheard: bool


@dataclass
class Failure(Exception):
    """Why a call has no answer."""

    refusal: Optional[tuple[Code, str]] = None
    not_offered: Optional[tuple[Code, str]] = None
    """An agent does not offer this: one of another version may."""
    uncertain: bool = False
    """An attempt may have taken effect, or may take effect later."""
    tried: list[_Tried] = field(default_factory=list)
    """Of each endpoint the last."""

    def put(self, label: str, why: str, unheard: bool = False) -> None:
        """`unheard`: no agent has replied."""
        for known in self.tried:
            if known.label == label:
                known.why, known.unheard = why, unheard
                return
        self.tried.append(_Tried(label, why, unheard))

    def put_first(self, label: str, why: str, unheard: bool = False) -> None:
        """Unless something is known of this endpoint."""
        if not any(known.label == label for known in self.tried):
            self.put(label, why, unheard)

    def over(self) -> Failure:
        if self.refusal is None and not self.tried:
            self.put("all", "no answer in time")
        return self

    def endpoints(self) -> list[tuple[str, str]]:
        return [(known.label, known.why) for known in self.tried]

    def reason(self) -> str:
        """In words."""
        if self.refusal is not None:
            return f"{self.refusal[0]}: {self.refusal[1]}"
        return listed(self.endpoints())

    def of_change(self) -> ElectionAgentError:
        """The error of a call that changes something: the effect of earlier attempts is not known."""
        if self.refusal is not None:
            if not self.uncertain:
                return Refused(*self.refusal)
            before = listed(self.endpoints()) or "an attempt that got no reply"
            return NotKnown(f"{self.refusal[0]}: {self.refusal[1]}; before: {before}")
        if self.uncertain:
            return NotKnown(listed(self.endpoints()))
        return Unreachable(self.endpoints())

    def of_question(self) -> ElectionAgentError:
        """The error of a call that changes nothing."""
        unheard = all(known.unheard for known in self.tried)
        uncertain = self.uncertain and self.refusal is None and not unheard
        return Failure(self.refusal, uncertain=uncertain, tried=self.tried).of_change()


class _Unsent(Exception):
    """Nothing was sent."""


def code_of(error: grpc.aio.AioRpcError) -> Optional[Code]:
    """The code of a status that means that nothing was changed."""
    try:
        return Code(error.code().name)
    except ValueError:
        return None


EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
"""What reading a stream returns at its end."""

UNSENT = "failed to connect to all addresses"
"""How gRPC's own statuses begin when there was no connection."""
BROKEN = ("Socket closed", "Connection reset", "Broken pipe", "recvmsg:", "sendmsg:", "GOAWAY", "Connection aborted")


def unsent(error: grpc.aio.AioRpcError) -> Optional[str]:
    """Why there was no connection, if that is what a status says."""
    details = error.details() or ""
    if error.code() is not grpc.StatusCode.UNAVAILABLE or not details.startswith(UNSENT) or error.trailing_metadata():
        return None
    why = details.partition("last error: ")[2] or details
    return why + _hint(why)


def _hint(text: str) -> str:
    # The reply of an agent without encryption is no TLS message.
    return ": it speaks no TLS, as an agent at http:// does" if "WRONG_VERSION_NUMBER" in text else ""


def describe(error: BaseException) -> str:
    """The code and the text of a status."""
    if isinstance(error, grpc.aio.AioRpcError):
        details = error.details() or ""
        return f"{error.code().name}: {details}{_hint(details)}"
    return str(error) or type(error).__name__


class Pool:
    """All connections of an agent in an event loop."""

    def __init__(self, endpoints: list[Endpoint], tokens: Tokens) -> None:
        self.endpoints = endpoints
        self.tokens = tokens
        self.waits = 0
        self._loop = asyncio.get_running_loop()
        self._connections: dict[tuple[Route, Lane], Connection] = {}
        self._versions: dict[int, int] = {}
        self._addresses: dict[int, tuple[list[tuple[str, int]], float]] = {}
        self._preferred: Optional[Route] = None
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Closes all connections: what is under way ends."""
        connections = list(self._connections.values())
        self._connections.clear()
        for connection in connections:
            connection.discarded = True
            self.close_channel(connection.channel)
        while self._closing:
            await asyncio.wait(self._closing)

    def close_channel(self, channel: grpc.aio.Channel) -> None:
        task = self._loop.create_task(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def routes(self) -> tuple[list[Route], list[tuple[str, str]]]:
        """Where calls may go, the best first; and the endpoints whose names have no address."""
        now = self._loop.time()
        stale = [
            index
            for index in range(len(self.endpoints))
            if index not in self._addresses
            or not self._addresses[index][0]
            or now - self._addresses[index][1] >= RESOLVED_FOR
        ]
        wrong = []
        if stale:
            found = await asyncio.gather(*(self.endpoints[index].resolve() for index in stale), return_exceptions=True)
            for index, addresses in zip(stale, found):
                known = self._addresses.get(index, ([], 0.0))[0]
                if isinstance(addresses, BaseException):
                    # The addresses known before may still be good.
                    if not known:
                        late = isinstance(addresses, asyncio.TimeoutError)
                        why = f"its name was not resolved within {RESOLVE} s" if late else str(addresses)
                        wrong.append((self.endpoints[index].label, why))
                else:
                    # Known addresses keep their places.
                    kept = [address for address in known if address in addresses]
                    known = kept + [address for address in addresses if address not in kept]
                self._addresses[index] = (known, self._loop.time())
            for key in list(self._connections):
                route = key[0]
                if (route.ip, route.port) not in self._addresses.get(route.endpoint, ([], 0.0))[0]:
                    self.discard(self._connections[key])
        routes = self._routes()
        preferred = self._preferred
        if preferred is not None and preferred in routes:
            routes.remove(preferred)
            routes.insert(0, preferred)
        return routes, wrong

    def _routes(self) -> list[Route]:
        return [
            Route(index, *address)
            for index in range(len(self.endpoints))
            for address in self._addresses.get(index, ([], 0.0))[0]
        ]

    def connection(self, route: Route, lane: Lane) -> Connection:
        """The connection to an address. Release it."""
        endpoint = self.endpoints[route.endpoint]
        version = endpoint.version()
        if self._versions.setdefault(route.endpoint, version) != version:
            self._versions[route.endpoint] = version
            # Channels connect anew by themselves, with what they were made with. What is under way goes on.
            for connection in list(self._connections.values()):
                if connection.key[0].endpoint == route.endpoint:
                    self.discard(connection)
        key = (route, lane)
        known = self._connections.get(key)
        if known is None:
            known = self._connections[key] = Connection(self, key, endpoint.channel(route))
        known.users += 1
        return known

    def discard(self, connection: Connection) -> None:
        """The next to use this address and lane connects anew. What is under way goes on."""
        if self._connections.get(connection.key) is connection:
            del self._connections[connection.key]
            connection.discarded = True
            if connection.users == 0:
                self.close_channel(connection.channel)

    def prefer(self, route: Route) -> None:
        """The address has answered."""
        self._preferred = route

    def avoid(self, route: Route) -> None:
        """Others are tried before this address."""
        if self._preferred in (route, None):
            self._preferred = next((other for other in self._routes() if other != route), self._preferred)

    def label(self, route: Route) -> str:
        endpoint = self.endpoints[route.endpoint]
        return endpoint.label if endpoint.ip == route.ip else f"{endpoint.label} ({route.ip})"

    def explain(self, route: Route, error: grpc.aio.AioRpcError) -> str:
        """Why an attempt has failed."""
        endpoint = self.endpoints[route.endpoint]
        why = unsent(error) or describe(error)
        if endpoint.tls is None and "Socket closed" in why:
            # gRPC reports nothing more of an agent that replies with a TLS alert.
            why += f" (an agent with TLS is reached at https://{endpoint.authority})"
        return why

    def forget_addresses(self) -> None:
        """Names are resolved again by the next call."""
        for index, (addresses, _) in self._addresses.items():
            self._addresses[index] = (addresses, -math.inf)

    async def metadata(self) -> Metadata:
        """What every request carries. Raises `NoToken`."""
        return await self.tokens.metadata()

    async def call(self, plan: Plan, method: str, request: Message, answer: type[Answered]) -> Answer[Answered]:
        """Calls an agent, and the next if it fails.

        Raises `Failure`: every attempt has failed, or an agent has refused.
        """
        until = self._loop.time() + plan.within
        failure = Failure()
        pause = 0.05
        attempts: dict[asyncio.Task[Answer[Answered]], tuple[Route, bool, asyncio.Event]] = {}

        def may_be_done() -> bool:
            return any(sent.is_set() for _, _, sent in attempts.values())

        try:
            rounds = 0
            while True:
                rounds += 1
                routes, wrong = await self.routes()
                for label, why in wrong:
                    failure.put(label, why, unheard=True)

                def begin(routes: list[Route] = routes) -> None:
                    if routes:
                        left = until - self._loop.time()
                        route = routes.pop(0)
                        within, sent = min(left, plan.attempt), asyncio.Event()
                        attempt = self._attempt(within, plan.lane, route, method, request, answer, sent)
                        attempts[self._loop.create_task(attempt)] = (route, left < plan.attempt, sent)

                begin()
                while attempts:
                    left = until - self._loop.time()
                    hedged = plan.hedge is not None and bool(routes)
                    wait = min(left, plan.hedge) if hedged and plan.hedge is not None else left
                    done, _ = await asyncio.wait(attempts, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
                    if not done:
                        if self._loop.time() >= until:
                            failure.uncertain = failure.uncertain or may_be_done()
                            for route, _, sent in attempts.values():
                                if not sent.is_set():
                                    failure.put_first(self.label(route), NO_TOKEN, unheard=True)
                            raise failure.over()
                        begin()
                        continue
                    for task in done:
                        route, short, _ = attempts.pop(task)
                        result = self._judge(task, route, short, failure)
                        if result is not None:
                            result.uncertain = failure.uncertain or may_be_done()
                            self.prefer(route)
                            return result
                        if failure.refusal is not None:
                            failure.uncertain = failure.uncertain or may_be_done()
                            raise failure.over()
                        begin()
                # All have failed: their names may have other addresses now.
                self.forget_addresses()
                if failure.not_offered is not None:
                    failure.refusal = failure.not_offered
                    raise failure.over()
                rest = pause * (0.5 + random.random())
                if not plan.again or rounds >= plan.rounds or self._loop.time() + rest >= until:
                    raise failure.over()
                await asyncio.sleep(rest)
                pause = min(pause * 2, 1.0)
        finally:
            for task in attempts:
                task.cancel()
            if attempts:
                await asyncio.wait(attempts)

    def _judge(
        self, task: asyncio.Task[Answer[Answered]], route: Route, short: bool, failure: Failure
    ) -> Optional[Answer[Answered]]:
        """The answer of an attempt, or else why there is none, for the failure."""
        label = self.label(route)
        try:
            return task.result()
        except _Unsent as error:
            failure.put(label, str(error), unheard=True)
        except grpc.aio.AioRpcError as error:
            code = code_of(error)
            details = error.details() or ""
            if code is Code.UNIMPLEMENTED:
                failure.not_offered = (code, details)
                failure.put(label, self.explain(route, error), unheard=True)
            elif code is not None:
                failure.refusal = (code, details)
            elif unsent(error) is not None:
                failure.put(label, self.explain(route, error), unheard=True)
            else:
                failure.uncertain = True
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and short:
                    # It had less time than others: earlier failures say more.
                    failure.put_first(label, self.explain(route, error))
                else:
                    broken = error.code() is grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in BROKEN)
                    failure.put(label, self.explain(route, error), unheard=broken)
        except asyncio.CancelledError:
            # The channel was closed under it.
            failure.uncertain = True
            failure.put(label, "the connection was closed", unheard=True)
        return None

    async def _attempt(
        self,
        within: float,
        lane: Lane,
        route: Route,
        method: str,
        request: Message,
        answer: type[Answered],
        is_sent: asyncio.Event,
    ) -> Answer[Answered]:
        until = self._loop.time() + within
        try:
            metadata = await asyncio.wait_for(self.metadata(), within) if self.tokens.any() else await self.metadata()
        except NoToken as error:
            raise _Unsent(str(error)) from error
        except asyncio.TimeoutError:
            raise _Unsent(NO_TOKEN) from None
        connection = self.connection(route, lane)
        try:
            call = connection.unary(method, answer)
            anchor = _clock.Anchor()
            sent = _clock.now_ns()
            left = max(0.001, until - self._loop.time())
            is_sent.set()
            value = await call(request, timeout=left, metadata=metadata)
            return Answer(value, sent, anchor, False)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or unsent(error) is not None:
                # It may be dead; and one that has failed waits before it connects again.
                self.discard(connection)
            raise
        finally:
            connection.release()
