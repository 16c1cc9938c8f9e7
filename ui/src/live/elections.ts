import { type State, State_Cause, State_Phase } from "@election-agent/client/proto";

/** What the page knows of an election. Never changed: a change makes another one. */
export interface Row {
  readonly key: string;
  readonly kind: string;
  readonly election: string;
  readonly held: boolean;
  /** HELD: the leader; VACANT: the last one that the page saw, or empty. */
  readonly leader: string;
  readonly value: string;
  readonly token: number;
  /** In ms since the Unix epoch; 0: not known. */
  readonly electedAt: number;
  /** HELD: until when the term lasts at least, by this machine's clock, in ms since the Unix epoch. */
  readonly until: number;
  /** The longest remaining time seen of this token, in ms: a full bar. */
  readonly full: number;
  readonly cause: State_Cause;
  readonly position: string;
  /** Others may have led before this state, unseen. */
  readonly missed: boolean;
  /** When the page learnt of the last change; 0: it was so when the page was opened. */
  readonly changedAt: number;
  /** When the term's end was last told, in ms since the Unix epoch. */
  readonly readAt: number;
  /** The stream that told of it last. */
  readonly generation: number;
}

/** Vacant elections that are remembered at the most. */
const MOST_VACANT = 5_000;

export function keyOf(kind: string, election: string): string {
  // Neither name contains "/".
  return `${kind === "" ? "default" : kind}/${election}`;
}

/** Orders by kind and then by name, by code units: the same for everybody. */
export function compareRows(a: Row, b: Row): number {
  if (a.kind !== b.kind) return a.kind < b.kind ? -1 : 1;
  if (a.election !== b.election) return a.election < b.election ? -1 : 1;
  return 0;
}

/** Whether a state comes after another of the same election: held(T) < vacant(T) < held(T + n). */
export function isLater(state: { token: number; held: boolean }, than: { token: number; held: boolean }): boolean {
  if (state.token !== than.token) return state.token > than.token;
  return than.held && !state.held;
}

function untold(cause: State_Cause): boolean {
  return cause === State_Cause.PRESENT || cause === State_Cause.CAUSE_UNSPECIFIED;
}

/** Makes a row of a state. */
export function rowOf(state: State, before: Row | undefined, generation: number, now: number): Row {
  const held = state.phase === State_Phase.HELD;
  const leader = state.leader;
  const remaining = leader?.remaining ?? 0;
  const token = Number(state.token);
  const same = before !== undefined && before.held && before.token === token;
  return {
    key: keyOf(state.kind, state.election),
    kind: state.kind,
    election: state.election,
    held,
    leader: held ? (leader?.name ?? "") : (before?.leader ?? ""),
    value: held ? (leader?.value ?? "") : "",
    token,
    electedAt: held ? Number(leader?.electedAt ?? 0n) : 0,
    until: held ? now + remaining : 0,
    full: held ? Math.max(remaining, same ? before.full : 0) : 0,
    cause: state.cause,
    position: state.position,
    missed: state.missed,
    changedAt: 0,
    readAt: now,
    generation,
  };
}

/** The elections that a stream tells of. */
export class Elections {
  readonly rows = new Map<string, Row>();
  /** Rises when a row comes or goes. */
  membership = 0;
  /** Rises when an election becomes vacant or held. */
  phases = 0;
  /** Rises with every change. */
  version = 0;
  /** Changes seen since the page was opened: present states do not count. */
  changes = 0;
  vacant = 0;
  private generation = 0;

  /** Takes a state from a stream. Returns whether it tells a change, or the cause of one. */
  apply(state: State, generation: number, present: boolean, now: number): boolean {
    const key = keyOf(state.kind, state.election);
    const before = this.rows.get(key);
    const row = rowOf(state, before, generation, now);
    if (before !== undefined) {
      const rolledBack = state.cause === State_Cause.ROLLED_BACK;
      // Of two streams that overlap, the newer one is right.
      if (generation < before.generation && !rolledBack && !isLater(row, before)) return false;
      if (before.position === row.position && before.held === row.held) {
        // A read may be sooner than the event, and does not know the cause.
        const explained = untold(before.cause) && !untold(row.cause);
        this.put({
          ...before,
          until: row.until,
          full: row.full,
          value: row.value,
          cause: explained ? row.cause : before.cause,
          missed: before.missed || row.missed,
          readAt: now,
          generation: Math.max(generation, before.generation),
        });
        if (explained) return true;
        return false;
      }
    }
    // A change that the older stream tells is of now, too: the newer one's Synced must not take it back.
    this.generation = Math.max(this.generation, generation);
    const change = before !== undefined || !present;
    if (change) this.changes += 1;
    this.put({
      ...row,
      missed: row.missed || (before !== undefined && present),
      changedAt: change ? now : 0,
      generation: present ? generation : this.generation,
    });
    return true;
  }

  /** All present elections were told by a stream: those that it did not name are vacant. */
  synced(generation: number, now: number): void {
    for (const row of this.rows.values()) {
      if (row.generation >= generation) continue;
      if (row.held) {
        this.changes += 1;
        this.put({
          ...row,
          held: false,
          value: "",
          until: 0,
          full: 0,
          electedAt: 0,
          position: "",
          cause: State_Cause.CAUSE_UNSPECIFIED,
          missed: true,
          changedAt: now,
          generation,
        });
      } else {
        this.put({ ...row, generation });
      }
    }
    this.prune();
  }

  /** Takes the state that was read of one election: mostly that its term was extended. */
  refresh(state: State, now: number): void {
    const before = this.rows.get(keyOf(state.kind, state.election));
    if (before === undefined) return;
    const row = rowOf(state, before, before.generation, now);
    if (before.held && row.held && before.token === row.token) {
      // Answers may overtake each other. A term is never shortened.
      this.put({ ...before, until: Math.max(row.until, before.until), full: row.full, readAt: now });
    } else if (isLater(row, before)) {
      this.changes += 1;
      this.put({ ...row, changedAt: now });
    } else {
      this.put({ ...before, readAt: now });
    }
  }

  clear(): void {
    this.rows.clear();
    this.vacant = 0;
    this.membership += 1;
    this.version += 1;
  }

  private put(row: Row): void {
    const before = this.rows.get(row.key);
    if (before === undefined) this.membership += 1;
    if (before !== undefined && before.held !== row.held) this.phases += 1;
    this.vacant += (row.held ? 0 : 1) - (before === undefined || before.held ? 0 : 1);
    this.rows.set(row.key, row);
    this.version += 1;
    if (this.vacant > MOST_VACANT * 1.2) this.prune();
  }

  private prune(): void {
    if (this.vacant <= MOST_VACANT) return;
    const vacant = [...this.rows.values()].filter((row) => !row.held).sort((a, b) => a.changedAt - b.changedAt);
    for (const row of vacant.slice(0, vacant.length - MOST_VACANT)) {
      this.rows.delete(row.key);
      this.vacant -= 1;
    }
    this.membership += 1;
  }
}

/** Which elections are listed. */
export interface Filter {
  kind: string | undefined;
  prefix: string;
  show: "all" | "held" | "vacant";
  order: "name" | "change";
}

/** The elections that a filter lets through, in order. */
export function listed(rows: Iterable<Row>, filter: Filter): Row[] {
  const result: Row[] = [];
  for (const row of rows) {
    if (filter.kind !== undefined && row.kind !== filter.kind) continue;
    if (filter.prefix !== "" && !row.election.startsWith(filter.prefix)) continue;
    if (filter.show !== "all" && row.held !== (filter.show === "held")) continue;
    result.push(row);
  }
  const order = filter.order === "name" ? compareRows : (a: Row, b: Row) => b.changedAt - a.changedAt || compareRows(a, b);
  return result.sort(order);
}
