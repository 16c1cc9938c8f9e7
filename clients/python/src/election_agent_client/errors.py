"""What can go wrong."""

from __future__ import annotations

import enum
from typing import Optional


class LostReason(str, enum.Enum):
    """Why leadership is lost."""

    TERM_OVER = "TERM_OVER"
    """The term was not extended in time: by the clock, it ends within the margin, or has ended."""
    HELD_BY_OTHER = "HELD_BY_OTHER"
    """Another candidate leads."""
    STALE_TOKEN = "STALE_TOKEN"
    """The candidate leads, but with a larger token: another process campaigned under the same name."""
    NO_TERM = "NO_TERM"
    """The election is vacant: the term has lapsed, or was given up."""
    CLOCK_JUMPED = "CLOCK_JUMPED"
    """The clock was stopped or set, so that the time that has passed is not known. Not on Linux and macOS, whose clocks
    count what a suspended machine misses."""

    def __str__(self) -> str:
        return _LOST[self]


_LOST = {
    LostReason.TERM_OVER: "the term is over: it was not extended in time",
    LostReason.HELD_BY_OTHER: "another candidate leads",
    LostReason.STALE_TOKEN: "the candidate leads with a larger token: another process campaigned under the same name",
    LostReason.NO_TERM: "the election is vacant: the term has lapsed or was given up",
    LostReason.CLOCK_JUMPED: "the clock jumped: the time that has passed is not known",
}


class Code(str, enum.Enum):
    """What kind of refusal. All of them say that nothing was changed."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    """A name, a term or another argument is out of range."""
    NOT_FOUND = "NOT_FOUND"
    """What was asked about does not exist."""
    ALREADY_EXISTS = "ALREADY_EXISTS"
    """The request was granted before, and what it granted is over."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """The credential is missing or not valid."""
    PERMISSION_DENIED = "PERMISSION_DENIED"
    """The caller may not do this."""
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    """The agent, or a limit of the caller, has no room: a rate, a quota, a number of streams."""
    UNIMPLEMENTED = "UNIMPLEMENTED"
    """The agent does not offer this."""

    def __str__(self) -> str:
        return self.value


class ElectionAgentError(Exception):
    """The base of all errors of this package."""


class NotElected(ElectionAgentError):
    """Another candidate led until the time to wait was over."""

    def __init__(self, leader: Optional[str] = None) -> None:
        super().__init__(leader)
        self.leader = leader
        """The leader, if the agent named it."""

    def __str__(self) -> str:
        return f"not elected: {self.leader or 'another candidate'} leads"


class Lost(ElectionAgentError):
    """The caller does not lead, or no longer."""

    def __init__(self, reason: LostReason, message: Optional[str] = None) -> None:
        super().__init__(reason, message)
        self.reason = reason
        """Why."""
        self.message = message or str(reason)
        """Why, for people."""

    def __str__(self) -> str:
        return f"lost: {self.message}"


class NotKnown(ElectionAgentError):
    """It is not known whether the request took effect: it may have, or may take effect later."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """What each endpoint answered last."""

    def __str__(self) -> str:
        return f"the outcome is not known: {self.reason}"


class Refused(ElectionAgentError):
    """The agent refused. Nothing was changed."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        """What kind of refusal."""
        self.message = message
        """The agent's message."""

    def __str__(self) -> str:
        return f"refused ({self.code}): {self.message}"


class Unreachable(ElectionAgentError):
    """No agent was reached: there was no connection, or, for a read, each ended without a reply. Nothing was
    changed."""

    def __init__(self, endpoints: list[tuple[str, str]]) -> None:
        super().__init__(endpoints)
        self.endpoints = endpoints
        """Each endpoint that was tried, and why it was not reached."""

    def __str__(self) -> str:
        return f"no agent was reached: {listed(self.endpoints)}"


class ConfigError(ElectionAgentError, ValueError):
    """A setting of the agent or of the call is wrong: an address, a file, a duration. Nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        """What to change."""

    def __str__(self) -> str:
        return f"configuration: {self.message}"


def listed(endpoints: list[tuple[str, str]]) -> str:
    """`a: why; b: why`."""
    return "; ".join(f"{endpoint}: {why}" for endpoint, why in endpoints)


def lost_of(reason: str) -> LostReason:
    """The reason of a definite denial. An unknown reason is a denial, too."""
    try:
        return LostReason(reason)
    except ValueError:
        return LostReason.NO_TERM
