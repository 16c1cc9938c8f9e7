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
 * - `news`: it was not told before
 * - `same`: it was told last
 * - `older`: what was told last came later, unless something was rolled back or forgotten: a quorum has to say
 *
 * @internal
 */
export type Verdict = "news" | "same" | "older";

/** @internal Names contain no control characters. */
export function keyOf(state: { kind: string; election: string }): string {
  return `${state.kind}\n${state.election}`;
}

/** @internal Of each election, what was told last, and so what may be told next. */
export class Known {
  private readonly states = new Map<string, Standing>();

  /** What a state is to an observer who was told the others. */
  judge(state: State): Verdict {
    const known = this.states.get(keyOf(state));
    if (known === undefined) return "news";
    const vacant = state.leader === undefined;
    if (known.token === state.token && known.vacant === vacant) return "same";
    const older = state.token < known.token || (state.token === known.token && known.vacant && !vacant);
    return older && state.cause !== "rolledBack" ? "older" : "news";
  }

  /** The state is told. */
  put(state: State): void {
    const { kind, election, token, leader } = state;
    this.states.set(keyOf(state), { kind, election, token, vacant: leader === undefined });
    if (this.states.size <= 2 * VACANT) return;
    // Which ones go does not matter: what they would tell is verified.
    let vacant = 0;
    for (const [key, standing] of this.states) {
      vacant += Number(standing.vacant);
      if (standing.vacant && vacant > VACANT) this.states.delete(key);
    }
  }

  /** Whether anything was told of the election. */
  has(state: State): boolean {
    return this.states.has(keyOf(state));
  }

  /** The elections that were told as held and are not among these. */
  heldBeside(states: ReadonlyMap<string, State>): { kind: string; election: string }[] {
    const beside = [...this.states].filter(([key, { vacant }]) => !vacant && !states.has(key));
    return beside.map(([, { kind, election }]) => ({ kind, election }));
  }
}
