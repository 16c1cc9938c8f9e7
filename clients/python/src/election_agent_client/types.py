"""What agents report."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional, Union

from ._proto import election_agent_pb2 as pb


class Cause(str, enum.Enum):
    """Why a state is reported."""

    PRESENT = "PRESENT"
    """It was the state when it was asked for."""
    CAMPAIGN = "CAMPAIGN"
    """The leader campaigned."""
    RESIGN = "RESIGN"
    """The leader resigned."""
    HANDOVER = "HANDOVER"
    """The leader was handed the election."""
    EXPIRY = "EXPIRY"
    """The leader's term ended."""
    ROLLED_BACK = "ROLLED_BACK"
    """A grant was rolled back that came too late: the state is an earlier one again."""
    UNKNOWN = "UNKNOWN"
    """The agent named a cause that this version does not know."""


class NotCurrent(str, enum.Enum):
    """Why a token is not the present leader's."""

    NO_TERM = "NO_TERM"
    """The election is vacant."""
    STALE_TOKEN = "STALE_TOKEN"
    """The election is held with a larger token."""
    NOT_GRANTED = "NOT_GRANTED"
    """No token as large as this one is known to have been granted."""
    OTHER = "OTHER"
    """The agent gave a reason that this version does not know."""


@dataclass(frozen=True)
class Leader:
    """A leader."""

    kind: str
    """The election's kind."""
    election: str
    """The election's name."""
    name: str
    """The leader's name."""
    token: int
    """The leader's fencing token. For observers: a leader's own work uses the token of its term."""
    remaining: float
    """How long the term lasts unless it is extended, in seconds, when the agent looked."""
    value: str
    """The leader's public data, such as its address."""
    elected_at: int
    """When the token was granted, in ms since the Unix epoch, by the clock of the agent that granted it."""


@dataclass(frozen=True)
class State:
    """The state of an election."""

    kind: str
    """The election's kind."""
    election: str
    """The election's name."""
    leader: Optional[Leader]
    """The leader; None when the election is vacant."""
    token: int
    """The leader's fencing token; of a vacant election the highest token that is remembered, 0 if none is."""
    cause: Cause
    """Why the state is reported."""
    position: str
    """Identifies the leadership or the vacancy. It stays the same while the leader extends its term."""
    missed: bool
    """Others may have led between the state reported before and this one."""

    @property
    def is_held(self) -> bool:
        """Whether the election has a leader."""
        return self.leader is not None


@dataclass(frozen=True)
class Synced:
    """All present states have been reported. Once, however often the observer connects again."""


@dataclass(frozen=True)
class Certainty:
    """Whether the states reported last are known to be the present ones. True until reported otherwise."""

    certain: bool
    """Whether they are."""
    unconfirmed_for: float
    """For how many seconds they have not been confirmed; 0.0 when certain."""
    reason: str
    """Why, for people; empty when certain."""


Event = Union[State, Synced, Certainty]
"""What an observer receives."""


@dataclass(frozen=True)
class Verified:
    """Whether a token is the present leader's."""

    current: bool
    """Whether the election is held with this token."""
    reason: Optional[NotCurrent]
    """Why it is not; None if it is."""
    state: Optional[State]
    """What the answer is based on."""
    valid_until: Optional[int]
    """Until then no other candidate is elected unless the leader resigns or hands over: in ns of the clock of
    `Term.valid_until`, counted from before the request was sent. None if the token is not current."""


@dataclass(frozen=True)
class Leaders:
    """The leaders of elections."""

    leaders: tuple[Leader, ...]
    """The held elections and their leaders, in a stable order."""
    incomplete: bool
    """A part of the lease nodes did not answer: elections may be missing."""


@dataclass(frozen=True)
class Kinds:
    """The kinds that have elections."""

    kinds: tuple[str, ...]
    """The kinds, in a stable order."""
    incomplete: bool
    """A part of the lease nodes did not answer: kinds may be missing."""


@dataclass(frozen=True)
class Campaigned:
    """How a campaign ended."""

    elected: bool
    """Whether the caller leads."""
    leader: str
    """The leader: the caller when elected."""
    token: int
    """The leader's token: the caller's when elected."""
    value: str
    """The leader's public data."""
    valid_until: Optional[int]
    """Elected: until when the caller may act, in ns of the clock of `Term.valid_until`, counted from before the
    campaign was sent."""
    provisional: bool
    """Elected after a wait: the term has to be extended at once."""


@dataclass(frozen=True)
class ReplicaSet:
    """A revision of a Deployment."""

    name: str
    """Its name; empty when it has gone."""
    revision: int
    """The rollout's revision: larger is newer."""
    replicas: int
    """Its pods."""
    ready_replicas: int
    """Its pods that are ready."""
    available_replicas: int
    """Its pods that have been ready for long enough."""
    fully_labeled_replicas: int
    """Its pods that have all labels of its template."""
    desired_replicas: int
    """The pods that the Deployment wants."""
    max_replicas: int
    """The pods that the Deployment allows during a rollout."""


@dataclass(frozen=True)
class Pod:
    """A pod of a Kubernetes Deployment."""

    name: str
    """The pod's name."""
    deployment: str
    """The Deployment that it belongs to."""
    ip: str
    """Its address; empty while it has none."""
    phase: str
    """Pending, Running, Succeeded, Failed or Unknown."""
    reason: str
    """Why the pod is in this phase; mostly empty."""
    terminating: bool
    """Whether its deletion was asked for."""
    scheduled: bool
    """Whether a node was found for it."""
    initialized: bool
    """Whether its init containers have ended."""
    ready: bool
    """Whether it is ready."""
    containers_ready: bool
    """Whether its containers are ready."""
    replica_set: ReplicaSet
    """The ReplicaSet that it belongs to."""


def leader_of(leader: pb.Leader) -> Leader:
    return Leader(
        leader.kind,
        leader.election,
        leader.name,
        leader.token,
        max(0, leader.remaining) / 1000,
        leader.value,
        leader.elected_at,
    )


def state_of(state: pb.State) -> Optional[State]:
    """None if the message names neither a leader nor a vacancy."""
    if state.phase == pb.State.HELD and state.HasField("leader"):
        leader = leader_of(state.leader)
    elif state.phase == pb.State.VACANT:
        leader = None
    else:
        return None
    try:
        cause = Cause(pb.State.Cause.Name(state.cause))
    except ValueError:
        cause = Cause.UNKNOWN
    return State(state.kind, state.election, leader, state.token, cause, state.position, state.missed)


def pod_of(pod: pb.Pod) -> Pod:
    status, replicas = pod.status, pod.replicaSet
    return Pod(
        pod.name,
        pod.deployment,
        pod.ip,
        status.phase,
        status.reason,
        status.terminating,
        status.podScheduled,
        status.podInitialized,
        status.podReady,
        status.containersReady,
        ReplicaSet(
            replicas.name,
            replicas.revision,
            replicas.replicas,
            replicas.readyReplicas,
            replicas.availableReplicas,
            replicas.fullyLabeledReplicas,
            replicas.desiredReplicas,
            replicas.maxReplicas,
        ),
    )
