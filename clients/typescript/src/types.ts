import { NotKnown } from "./errors.js";
import * as proto from "./proto.js";

/** Why a state is reported. `unknown`: for a reason that this version does not know. */
export type Cause = "present" | "campaign" | "resign" | "handover" | "expiry" | "rolledBack" | "unknown";

/** The state of an election. */
export interface State {
  /** The election's kind. */
  kind: string;
  /** The election's name. */
  election: string;
  /** The leader; undefined when the election is vacant. */
  leader: Leader | undefined;
  /** The leader's fencing token; of a vacant election the highest token that is remembered, 0 if none is. */
  token: number;
  /** Why the state is reported. */
  cause: Cause;
  /** Identifies the leadership or the vacancy. It stays the same while the leader extends its term. */
  position: string;
  /** Others may have led between the state reported before and this one. */
  missed: boolean;
}

/** A leader. */
export interface Leader {
  /** The election's kind. */
  kind: string;
  /** The election's name. */
  election: string;
  /** The leader's name. */
  name: string;
  /** The leader's fencing token. */
  token: number;
  /** For how many ms the term lasts unless it is extended, when the agent looked. */
  remaining: number;
  /** The leader's public data, such as its address. */
  value: string;
  /** When the token was granted, in ms since the Unix epoch, by the clock of the agent that granted it. */
  electedAt: number;
}

/** Why a token is not the present leader's: `NO_TERM`, `STALE_TOKEN`, `NOT_GRANTED`, or what a newer agent says. */
export type NotCurrent = "NO_TERM" | "STALE_TOKEN" | "NOT_GRANTED" | (string & {});

/** Whether a token is the present leader's. */
export interface Verified {
  /** Whether the election is held with this token. */
  current: boolean;
  /** Why it is not; undefined if it is. */
  reason: NotCurrent | undefined;
  /** What the answer is based on. */
  state: State | undefined;
  /**
   * Until then, on the scale of `performance.now()`, no other candidate is elected unless the leader resigns or hands
   * over. Counted from before the request was sent. Undefined if the token is not current.
   */
  validUntil: number | undefined;
}

/** The leaders of elections. */
export interface Leaders {
  /** The held elections and their leaders, in a stable order. */
  leaders: Leader[];
  /** A part of the lease nodes did not answer: elections may be missing. */
  incomplete: boolean;
}

/** The kinds that have elections. */
export interface Kinds {
  /** The kinds, in a stable order. */
  kinds: string[];
  /** A part of the lease nodes did not answer: kinds may be missing. */
  incomplete: boolean;
}

/**
 * Which elections are observed: one of the kind `default` by its name, one of a kind, those of a kind whose names begin
 * with a prefix, all of a kind, or all elections of all kinds that the caller may list.
 */
export type Scope =
  | string
  | { kind?: string | undefined; election: string; prefix?: undefined; all?: undefined }
  | { kind?: string | undefined; prefix: string; election?: undefined; all?: undefined }
  | { kind: string; election?: undefined; prefix?: undefined; all?: undefined }
  | { all: true; kind?: undefined; election?: undefined; prefix?: undefined };

/** One campaign, for callers that extend on their own. `lead` does all of it. */
export interface Campaign {
  /** The election's name. */
  election: string;
  /** The election's kind; `default` unless given. */
  kind?: string | undefined;
  /** The name to campaign under. */
  candidate: string;
  /**
   * How long the leadership lasts unless it is extended, in ms: 1000 to what the agent allows, 60,000 unless
   * configured.
   */
  term: number;
  /** Public data of the leader, such as its address: at most 1024 bytes. */
  value?: string | undefined;
  /** For how many ms to wait if another candidate leads: at most what the agent allows, 60,000 unless configured. */
  wait?: number | undefined;
  /** Names this attempt to get elected, so that it can be repeated; a random one unless given. */
  requestId?: string | undefined;
}

/** How a campaign ended. */
export interface Campaigned {
  /** Whether the caller leads. */
  elected: boolean;
  /** The leader: the caller when elected. */
  leader: string;
  /** The leader's token: the caller's when elected. */
  token: number;
  /** The leader's public data. */
  value: string;
  /**
   * Elected: until when the caller may act, on the scale of `performance.now()`, counted from before the campaign was
   * sent.
   */
  validUntil: number | undefined;
  /** Elected after a wait: the term has to be extended at once. */
  provisional: boolean;
}

/** Which term is extended. */
export interface Extension {
  /** The election's name. */
  election: string;
  /** The election's kind; `default` unless given. */
  kind?: string | undefined;
  /** The leader. */
  candidate: string;
  /** Its token. */
  token: number;
  /** The new term, in ms from now. */
  term: number;
}

/** Which term is given up. */
export interface Resignation {
  /** The election's name. */
  election: string;
  /** The election's kind; `default` unless given. */
  kind?: string | undefined;
  /** The leader. */
  candidate: string;
  /** Its token. */
  token: number;
}

/** Moves a leadership to another candidate. */
export interface Handover {
  /** The election's name. */
  election: string;
  /** The election's kind; `default` unless given. */
  kind?: string | undefined;
  /** The candidate that is to lead. */
  to: string;
  /** Its term, in ms. */
  term: number;
  /** The leader that hands over; needed unless the election is vacant. */
  from?: string | undefined;
  /** The fencing token of the leader that hands over. */
  token?: number | undefined;
}

/** What has an AbortSignal. */
export interface Abortable {
  /** Ends the call, which then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** A pod of a Kubernetes Deployment. */
export interface Pod {
  /** The pod's name. */
  name: string;
  /** The Deployment that it belongs to. */
  deployment: string;
  /** Its address; empty while it has none. */
  ip: string;
  /** Pending, Running, Succeeded, Failed or Unknown. */
  phase: string;
  /** Why the pod is in this phase; mostly empty. */
  reason: string;
  /** Whether its deletion was asked for. */
  terminating: boolean;
  /** Whether a node was found for it. */
  scheduled: boolean;
  /** Whether its init containers have ended. */
  initialized: boolean;
  /** Whether it is ready. */
  ready: boolean;
  /** Whether its containers are ready. */
  containersReady: boolean;
  /** The ReplicaSet that it belongs to. */
  replicaSet: ReplicaSet;
}

/** A revision of a Deployment. */
export interface ReplicaSet {
  /** Its name; empty when it has gone. */
  name: string;
  /** The rollout's revision: larger is newer. */
  revision: number;
  /** Its pods. */
  replicas: number;
  /** Its pods that are ready. */
  readyReplicas: number;
  /** Its pods that have been ready for long enough. */
  availableReplicas: number;
  /** Its pods that have all labels of its template. */
  fullyLabeledReplicas: number;
  /** The pods that the Deployment wants. */
  desiredReplicas: number;
  /** The pods that the Deployment allows during a rollout. */
  maxReplicas: number;
}

/** @internal A token of the wire. Agents give none that is larger than numbers are exact. */
export function tokenFrom(token: bigint): number {
  const number = Number(token);
  if (!Number.isSafeInteger(number)) throw new NotKnown(`the agent named the token ${token}, which is not below 2^53`);
  return number;
}

/** @internal */
export function leaderOf(leader: proto.Leader): Leader {
  return {
    kind: leader.kind,
    election: leader.election,
    name: leader.name,
    token: tokenFrom(leader.token),
    remaining: leader.remaining,
    value: leader.value,
    electedAt: Number(leader.electedAt),
  };
}

function causeOf(cause: proto.State_Cause): Cause {
  switch (cause) {
    case proto.State_Cause.PRESENT:
      return "present";
    case proto.State_Cause.CAMPAIGN:
      return "campaign";
    case proto.State_Cause.RESIGN:
      return "resign";
    case proto.State_Cause.HANDOVER:
      return "handover";
    case proto.State_Cause.EXPIRY:
      return "expiry";
    case proto.State_Cause.ROLLED_BACK:
      return "rolledBack";
    default:
      return "unknown";
  }
}

/** @internal Undefined if the message names neither a leader nor a vacancy. */
export function stateOf(state: proto.State): State | undefined {
  let leader: Leader | undefined;
  switch (state.phase) {
    case proto.State_Phase.HELD:
      if (state.leader === undefined) return undefined;
      leader = leaderOf(state.leader);
      break;
    case proto.State_Phase.VACANT:
      leader = undefined;
      break;
    default:
      return undefined;
  }
  return {
    kind: state.kind,
    election: state.election,
    leader,
    token: tokenFrom(state.token),
    cause: causeOf(state.cause),
    position: state.position,
    missed: state.missed,
  };
}

/** @internal */
export function podOf(pod: proto.Pod): Pod {
  const { status, replicaSet: set } = pod;
  return {
    name: pod.name,
    deployment: pod.deployment,
    ip: pod.ip,
    phase: status?.phase ?? "",
    reason: status?.reason ?? "",
    terminating: status?.terminating ?? false,
    scheduled: status?.podScheduled ?? false,
    initialized: status?.podInitialized ?? false,
    ready: status?.podReady ?? false,
    containersReady: status?.containersReady ?? false,
    replicaSet: {
      name: set?.name ?? "",
      revision: set?.revision ?? 0,
      replicas: set?.replicas ?? 0,
      readyReplicas: set?.readyReplicas ?? 0,
      availableReplicas: set?.availableReplicas ?? 0,
      fullyLabeledReplicas: set?.fullyLabeledReplicas ?? 0,
      desiredReplicas: set?.desiredReplicas ?? 0,
      maxReplicas: set?.maxReplicas ?? 0,
    },
  };
}
