"""Leads, and follows who leads, by an election agent: leader election as a service.

.. include:: ../../README.md
"""

from . import _fork as _fork
from ._hooks import (
    ExtensionRefused,
    Jeopardy,
    LeadershipLost,
    Leading,
    Resigned,
    Standing,
    Unanswered,
    Waiting,
)
from .agent import Agent, Lead, LoopTerm, Observer, Term, Terms
from .errors import (
    Code,
    ConfigError,
    ElectionAgentError,
    Lost,
    LostReason,
    NotElected,
    NotKnown,
    Refused,
    Unreachable,
)
from .sync import SyncAgent, SyncLead, SyncLoopTerm, SyncObserver, SyncTerm
from .types import (
    Campaigned,
    Cause,
    Certainty,
    Event,
    Kinds,
    Leader,
    Leaders,
    NotCurrent,
    Pod,
    ReplicaSet,
    State,
    Synced,
    Verified,
)

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Campaigned",
    "Cause",
    "Certainty",
    "Code",
    "ConfigError",
    "ElectionAgentError",
    "Event",
    "ExtensionRefused",
    "Jeopardy",
    "Kinds",
    "Lead",
    "Leader",
    "Leaders",
    "LeadershipLost",
    "Leading",
    "LoopTerm",
    "Lost",
    "LostReason",
    "NotCurrent",
    "NotElected",
    "NotKnown",
    "Observer",
    "Pod",
    "Refused",
    "ReplicaSet",
    "Resigned",
    "Standing",
    "State",
    "SyncAgent",
    "SyncLead",
    "SyncLoopTerm",
    "SyncObserver",
    "SyncTerm",
    "Synced",
    "Term",
    "Terms",
    "Unanswered",
    "Unreachable",
    "Verified",
    "Waiting",
]
