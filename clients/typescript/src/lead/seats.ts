import type { Who } from "./term.js";
import { Deferred, TIMED_OUT, within } from "../wait.js";

/**
 * Turns of candidates to campaign within this process.
 *
 * A leader's own campaign succeeds with a new token, and fences the leader. So two leaderships of one process under the
 * same name take turns: the second campaigns when the first has resigned, or its term is over.
 *
 * @internal
 */
export class Seats {
  private readonly queues = new Map<string, Deferred<void>[]>();

  /**
   * Waits for the turn, first come, first served. Returns what gives the seat back; undefined if the time was over.
   *
   * @throws the signal's reason
   */
  async take(who: Who, ms: number, signal: AbortSignal | undefined): Promise<(() => void) | undefined> {
    const key = `${who.kind}\n${who.election}\n${who.candidate}`;
    const queue = this.queues.get(key) ?? [];
    this.queues.set(key, queue);
    const turn = new Deferred<void>();
    queue.push(turn);
    if (queue[0] === turn) turn.resolve();
    let given = false;
    const giveBack = () => {
      if (given) return;
      given = true;
      queue.splice(queue.indexOf(turn), 1);
      if (queue[0] !== undefined) queue[0].resolve();
      else if (this.queues.get(key) === queue) this.queues.delete(key);
    };
    if (queue[0] === turn) return giveBack;
    // A waiter keeps the process alive: what ends a turn may not.
    const wait = setInterval(() => {}, 2 ** 30);
    try {
      if ((await within(turn.promise, ms, signal)) !== TIMED_OUT) return giveBack;
    } catch (error) {
      giveBack();
      throw error;
    } finally {
      clearInterval(wait);
    }
    giveBack();
    return undefined;
  }
}
