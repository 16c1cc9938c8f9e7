/**
 * What kind of refusal. All of them say that nothing was changed.
 *
 * - `INVALID_ARGUMENT`: a name, a term or another argument is out of range
 * - `NOT_FOUND`: what was asked about does not exist
 * - `ALREADY_EXISTS`: the request was granted before, and what it granted is over
 * - `UNAUTHENTICATED`: the credential is missing or not valid
 * - `PERMISSION_DENIED`: the caller may not do this
 * - `RESOURCE_EXHAUSTED`: the agent, or a limit of the caller, has no room: a rate, a quota, a number of streams
 * - `UNIMPLEMENTED`: the agent does not offer this
 */
export type RefusalCode =
  | "INVALID_ARGUMENT"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "UNAUTHENTICATED"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "UNIMPLEMENTED";

/**
 * Why leadership is lost.
 *
 * - `TermOver`: the term was not extended in time: by the clock, it ends within the margin, or has ended
 * - `HeldByOther`: another candidate leads
 * - `StaleToken`: the candidate leads with a larger token: another process campaigned under the same name
 * - `NoTerm`: the election is vacant: the term has lapsed, or somebody resigned in the candidate's name
 * - `ClockJumped`: the clock was stopped or set, so that the time that has passed is not known. Not on Linux, where
 *   the client sees for how long the machine was suspended
 */
export type LostReason = "TermOver" | "HeldByOther" | "StaleToken" | "NoTerm" | "ClockJumped";

/** The base of this package's errors. */
export abstract class ElectionError extends Error {}

/** Another candidate led until the time to wait was over. */
export class NotElected extends ElectionError {
  override readonly name = "NotElected";

  /** @param leader the leader, if the agent named it */
  constructor(readonly leader: string | undefined) {
    super(`not elected: ${leader ?? "another candidate"} leads`);
  }
}

const LOST: Record<LostReason, string> = {
  TermOver: "the term is over: it was not extended in time",
  HeldByOther: "another candidate leads",
  StaleToken: "the candidate leads with a larger token: another process campaigned under the same name",
  NoTerm: "the election is vacant: the term has lapsed or was given up",
  ClockJumped: "the clock jumped: the time that has passed is not known",
};

/** The caller does not lead, or no longer. */
export class Lost extends ElectionError {
  override readonly name = "Lost";

  constructor(
    /** Why. */
    readonly reason: LostReason,
    options?: ErrorOptions,
  ) {
    super(`lost: ${LOST[reason]}`, options);
  }
}

/** It is not known whether the request took effect: it may have, or may take effect later. */
export class NotKnown extends ElectionError {
  override readonly name = "NotKnown";

  constructor(
    /** What each endpoint answered last. */
    readonly reason: string,
  ) {
    super(`the outcome is not known: ${reason}`);
  }
}

/** The agent refused. Nothing was changed. */
export class Refused extends ElectionError {
  override readonly name = "Refused";

  constructor(
    /** What kind of refusal. */
    readonly code: RefusalCode,
    /** The agent's message. */
    readonly detail: string,
  ) {
    super(`refused (${code}): ${detail}`);
  }
}

/** An endpoint that was tried, and why it was not reached. */
export interface Tried {
  /** The endpoint, as it was configured, and its address if it has several. */
  endpoint: string;
  /** Why it was not reached, for people. */
  why: string;
}

/**
 * No agent was reached: there was no connection, or, for a read, each ended without a reply. Nothing was changed.
 */
export class Unreachable extends ElectionError {
  override readonly name = "Unreachable";

  constructor(
    /** Each endpoint that was tried. */
    readonly endpoints: readonly Tried[],
  ) {
    super(`no agent was reached: ${listed(endpoints)}`);
  }
}

/** A setting of the agent or of the call is wrong: an address, a file, a duration. Nothing was sent. */
export class ConfigError extends ElectionError {
  override readonly name = "ConfigError";
}

/** @internal `a: why; b: why`. */
export function listed(tried: readonly Tried[]): string {
  return tried.map(({ endpoint, why }) => `${endpoint}: ${why}`).join("; ");
}

/** @internal The reason of a definite denial; undefined if the agent named another. */
export function lostReason(reason: string): LostReason | undefined {
  switch (reason) {
    case "NO_TERM":
      return "NoTerm";
    case "HELD_BY_OTHER":
      return "HeldByOther";
    case "STALE_TOKEN":
      return "StaleToken";
    default:
      return undefined;
  }
}
