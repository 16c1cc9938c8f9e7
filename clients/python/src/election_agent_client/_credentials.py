"""Credentials of a caller, and the authorities that it trusts."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Callable, Optional, Union

from . import _threads
from .errors import ConfigError

if TYPE_CHECKING:
    import grpc

_log = logging.getLogger("election_agent_client")

LOOK = 1.0
"""How often files of certificates are checked, in seconds."""

TokenSource = Callable[[], Union[str, Awaitable[str]]]
Path = Union[str, "os.PathLike[str]"]
Metadata = tuple[tuple[str, str], ...]


class NoToken(Exception):
    """Why there is no token."""


def _checked(token: object) -> str:
    if not isinstance(token, str) or not token:
        raise NoToken(f"the token is {'empty' if token == '' else 'no string'}")
    # Never names the token.
    if not all(33 <= ord(char) <= 126 for char in token):
        raise NoToken("the token has characters that no header may have")
    return token


class Tokens:
    """Where bearer tokens come from."""

    def __init__(
        self, static: Optional[str] = None, file: Optional[Path] = None, source: Optional[TokenSource] = None
    ) -> None:
        if sum(given is not None for given in (static, file, source)) > 1:
            raise ConfigError("give one of token, token_file and token_from")
        if static is not None:
            try:
                _checked(static)
            except NoToken as error:
                raise ConfigError(f"token: {error}") from None
        if source is not None and not callable(source):
            raise ConfigError(f"token_from is {source!r}: give a function")
        path_of(file, "token_file")
        self._static = static
        self._file = file
        self._source = source
        self._last: Optional[str] = None
        self._once = _threads.Once("election-token")
        self._is_async = inspect.iscoroutinefunction(source)

    def any(self) -> bool:
        return self._static is not None or self._file is not None or self._source is not None

    async def metadata(self) -> Metadata:
        """What every request carries. Raises `NoToken`."""
        token = await self._present()
        metadata: Metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        return (*metadata, *trace())

    async def _present(self) -> Optional[str]:
        if self._static is not None:
            return self._static
        if self._file is not None:
            return self._read(self._file)
        if self._source is not None:
            try:
                token = None
                if not self._is_async:
                    # It may ask another service: not on the event loop.
                    token = await asyncio.wrap_future(self._once.run(self._source))
                    if _threads.awaitable(token) is not None:
                        self._is_async = True
                if self._is_async:
                    given = self._source()
                    token = await given if inspect.isawaitable(given) else given
            except asyncio.CancelledError:
                raise
            except Exception as error:
                raise NoToken(f"the function that returns tokens has failed: {error}") from error
            return _checked(token)
        return None

    def _read(self, path: Path) -> str:
        # Read each time: the file is small, and no sign of a change is as sure as its content.
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            if self._last is None:
                raise NoToken(f"the token file {os.fspath(path)}: {error}") from error
            _log.warning("the token file %s: going on with the last token: %s", os.fspath(path), error)
            return self._last
        if token:
            try:
                self._last = _checked(token)
            except NoToken as error:
                if self._last is None:
                    raise NoToken(f"the token file {os.fspath(path)}: {error}") from None
                _log.warning("the token file %s: going on with the last token: %s", os.fspath(path), error)
        elif self._last is None:
            raise NoToken(f"the token file {os.fspath(path)} is empty")
        # Otherwise it may be in the middle of being replaced.
        return self._last


def trace() -> Metadata:
    """The present trace context. Without a program that has loaded OpenTelemetry there is none."""
    if "opentelemetry" not in sys.modules:
        return ()
    try:
        from opentelemetry import propagate
    except ImportError:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())


def path_of(path: Optional[Path], what: str) -> None:
    """Raises `ConfigError` if it is no path. A number would be taken for a file that is open."""
    if path is not None and (not isinstance(path, (str, os.PathLike)) or not os.fspath(path)):
        raise ConfigError(f"{what} is {path!r}: give the path of a file")


def _pem(path: Path, label: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: {error.strerror or error}") from error
    if f"{label}-----".encode() not in content:
        raise ConfigError(f"{os.fspath(path)}: there is no {what} in it")
    return content


class _Contents:
    """What is in the files."""

    def __init__(self, authorities: Optional[bytes], certificate: Optional[bytes], key: Optional[bytes]) -> None:
        self.authorities = authorities
        self.certificate = certificate
        self.key = key

    def all(self) -> tuple[Optional[bytes], Optional[bytes], Optional[bytes]]:
        return self.authorities, self.certificate, self.key


class Tls:
    """Files for encrypted connections. New connections use their present content."""

    def __init__(
        self,
        ca_file: Optional[Path] = None,
        cert_file: Optional[Path] = None,
        key_file: Optional[Path] = None,
        server_name: Optional[str] = None,
    ) -> None:
        for path, what in ((ca_file, "ca_file"), (cert_file, "cert_file"), (key_file, "key_file")):
            path_of(path, what)
        if server_name is not None and (
            not isinstance(server_name, str) or not re.fullmatch(r"[A-Za-z0-9._:-]+", server_name)
        ):
            raise ConfigError(f"server_name is {server_name!r}: give the name that the agent's certificate has")
        if (cert_file is None) != (key_file is None):
            raise ConfigError("give cert_file and key_file together")
        self._ca_file = ca_file
        self._cert_file = cert_file
        self._key_file = key_file
        self.server_name = server_name
        self._looked = time.monotonic()
        self._version = 0
        self._contents = self._read()

    def any(self) -> bool:
        """Whether something is given that only encrypted connections use."""
        return self._ca_file is not None or self._cert_file is not None or self.server_name is not None

    def _read(self) -> _Contents:
        authorities = certificate = key = None
        if self._ca_file is not None:
            authorities = _pem(self._ca_file, "CERTIFICATE", "certificate")
        if self._cert_file is not None and self._key_file is not None:
            certificate = _pem(self._cert_file, "CERTIFICATE", "certificate")
            key = _pem(self._key_file, "PRIVATE KEY", "private key")
            self._match()
        return _Contents(authorities, certificate, key)

    def _match(self) -> None:
        # gRPC would only report later that no connection succeeds.
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
                os.fspath(self._cert_file or ""), os.fspath(self._key_file or ""), password=_no_password
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{os.fspath(self._cert_file or '')} and {os.fspath(self._key_file or '')} are no certificate and its"
                f" key: {error}"
            ) from error

    def version(self) -> int:
        """Checks the files, if that was not done just now. Returns the number of their version."""
        if (self._ca_file is None and self._cert_file is None) or time.monotonic() - self._looked < LOOK:
            return self._version
        self._looked = time.monotonic()
        try:
            contents = self._read()
        except ConfigError as error:
            # A certificate and a key that do not belong together are in the middle of being replaced.
            _log.warning("files of certificates: going on with the last ones: %s", error)
            return self._version
        if contents.all() != self._contents.all():
            self._contents = contents
            self._version += 1
        return self._version

    def credentials(self) -> grpc.ChannelCredentials:
        import grpc

        authorities = self._contents.authorities or _system()
        return grpc.ssl_channel_credentials(authorities, self._contents.key, self._contents.certificate)


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _system() -> Optional[bytes]:
    """The authorities that the system trusts. None: those that gRPC comes with, or that its environment variable
    names."""
    if os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        return None
    import ssl

    path = ssl.get_default_verify_paths().cafile
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read() or None
    except OSError:
        return None
