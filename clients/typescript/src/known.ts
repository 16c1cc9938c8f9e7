import type { State } from "./types.js";

/** How many vacant elections are remembered, beside those that are held. */
const VACANT = 20_000;

/** States of an election follow each other so: held with a token, vacant with it, held with a larger one. */
interface Standing {
  token: number;
  vacant: boolean;
  kind: string;
  election: string;
}

/**
 * What to do with a state.
 *
 * - `news`: it was not reported before
 * - `same`: it was reported last
 * - `older`: the last reported state is later, unless something was rolled back or forgotten: a quorum has to decide
 *
 * @internal
 */
export type Verdict = "news" | "same" | "older";

/** @internal Names contain no control characters. */
export function keyOf(state: { kind: string; election: string }): string {
  return `${state.kind}\n${state.election}`;
}

/** @internal Of each election, the last reported state, and so what may be reported next. */
export class Known {
  private readonly states = new Map<string, Standing>();

  /** Compares a state with those that were reported before. */
  judge(state: State): Verdict {
    const known = this.states.get(keyOf(state));
    if (known === undefined) return "news";
    const vacant = state.leader === undefined;
    if (known.token === state.token && known.vacant === vacant) return "same";
    const older = state.token < known.token || (state.token === known.token && known.vacant && !vacant);
    return older && state.cause !== "rolledBack" ? "older" : "news";
  }

  /** The state is reported. */
  put(state: State): void {
    const { kind, election, token, leader } = state;
    this.states.set(keyOf(state), { kind, election, token, vacant: leader === undefined });
    if (this.states.size <= 2 * VACANT) return;
    // Any may be dropped: a quorum verifies what they would have decided.
    let vacant = 0;
    for (const [key, standing] of this.states) {
      vacant += Number(standing.vacant);
      if (standing.vacant && vacant > VACANT) this.states.delete(key);
    }
  }

  /** Whether anything was reported of the election. */
  has(state: State): boolean {
    return this.states.has(keyOf(state));
  }

  /** The elections that were reported as held and are not among these. */
  heldBeside(states: ReadonlyMap<string, State>): { kind: string; election: string }[] {
    const beside = [...this.states].filter(([key, { vacant }]) => !vacant && !states.has(key));
    return beside.map(([, { kind, election }]) => ({ kind, election }));
  }
}
