import { type Change, type State, State_Cause, State_Phase } from "@election-agent/client/proto";

/** A line of an election's log. */
export type Entry =
  | {
      what: "state";
      id: string;
      held: boolean;
      leader: string;
      token: number;
      cause: State_Cause;
      missed: boolean;
      at: number;
      /** The agent remembers it, or only this page has seen it. */
      remembered: boolean;
    }
  | { what: "gap"; id: string; from: number; at: number };

const MOST = 500;

function idOf(state: State): string {
  // A position comes again only when a later grant was rolled back.
  return `${state.position}${state.cause === State_Cause.ROLLED_BACK ? "!" : ""}`;
}

/** The entry of a state that was heard at an instant. */
export function entryOf(state: State, at: number, remembered: boolean): Entry {
  return {
    what: "state",
    id: idOf(state),
    held: state.phase === State_Phase.HELD,
    leader: state.leader?.name ?? "",
    token: Number(state.token),
    cause: state.cause,
    missed: state.missed,
    at,
    remembered,
  };
}

/** Merges what a page has seen with what the agent remembers: each change once, the newest first. */
export function merged(seen: readonly Entry[], remembered: readonly Change[]): Entry[] {
  const byId = new Map<string, Entry>();
  for (const entry of seen) byId.set(entry.id, entry);
  for (const change of remembered) {
    if (change.state === undefined) continue;
    const entry = entryOf(change.state, Number(change.at), true);
    const before = byId.get(entry.id);
    if (before?.what !== "state") byId.set(entry.id, entry);
    // The agent knows when, and what led to it; the page knows that it has missed something.
    else byId.set(entry.id, { ...(entry.what === "state" ? entry : before), missed: before.missed || change.state.missed });
  }
  return [...byId.values()].sort((a, b) => b.at - a.at || order(b) - order(a)).slice(0, MOST);
}

function order(entry: Entry): number {
  return entry.what === "gap" ? -1 : 2 * entry.token + (entry.held ? 0 : 1);
}
