import type { LostReason, RefusalCode } from "../errors.js";
import type { Logger } from "../log.js";
import type { Term } from "./term.js";

/** Where a candidate stands in an election. */
export type Standing =
  /** Another candidate leads, or nothing is known yet: the candidate waits. The leader, if the agent named it. */
  | { is: "waiting"; leader: string | undefined }
  /** The candidate leads. `validUntil` is on the scale of `performance.now()`. */
  | { is: "leading"; token: number; validUntil: number }
  /** An attempt to extend the term has failed, and it is not known whether the candidate leads. */
  | { is: "jeopardy"; reason: string }
  /** No agent answers while the candidate waits. */
  | { is: "notKnown"; reason: string }
  /** The agent refuses to extend the term, which goes on until its time is over. */
  | { is: "refused"; code: RefusalCode; detail: string }
  /** The leadership is lost. */
  | { is: "lost"; reason: LostReason }
  /** The work has not ended within the grace after the loss: the term is not extended any more, and lapses. */
  | { is: "lapsing" }
  /** The candidate has given its leadership up. */
  | { is: "resigned" };

/** The caller's functions. They are called in order; one that throws is logged. */
export interface Hooks {
  /** Is called whenever the candidate's standing changes. */
  onState?: ((standing: Standing) => void) | undefined;
  /** Is called when the term could not be extended, and it is not known whether the candidate leads. */
  onJeopardy?: ((term: Term) => void) | undefined;
  /** Is called when the leadership is lost. */
  onLost?: ((reason: LostReason) => void) | undefined;
  /**
   * Is asked before each extension: while it returns false, throws or does not return, the term is not extended, so
   * that an application that hangs does not lead on.
   */
  alive?: (() => boolean | Promise<boolean>) | undefined;
}

/** @internal Calls the caller's functions. */
export class Told {
  constructor(
    readonly hooks: Hooks,
    private readonly log: Logger,
  ) {}

  state(standing: Standing): void {
    const { onState } = this.hooks;
    if (onState !== undefined) this.call(() => onState(standing));
  }

  lost(reason: LostReason): void {
    this.state({ is: "lost", reason });
    const { onLost } = this.hooks;
    if (onLost !== undefined) this.call(() => onLost(reason));
  }

  jeopardy(term: Term, reason: string): void {
    this.state({ is: "jeopardy", reason });
    const { onJeopardy } = this.hooks;
    if (onJeopardy !== undefined) this.call(() => onJeopardy(term));
  }

  /** Soon, so that code that checks a term is not interrupted. */
  private call(hook: () => unknown): void {
    const failed = (error: unknown) => this.log.error?.("a leadership callback has failed", { error });
    queueMicrotask(() => {
      try {
        const result = hook();
        if (result instanceof Promise) result.catch(failed);
      } catch (error) {
        failed(error);
      }
    });
  }
}
