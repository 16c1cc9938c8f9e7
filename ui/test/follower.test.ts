import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Observation, ObservationSchema } from "@election-agent/client/proto";
import { Follower, type Link } from "../src/live/follower";
import { held } from "./states";

/** A stream that the test feeds. */
class Stream implements AsyncIterable<Observation> {
  private readonly queue: (Observation | Error | "end")[] = [];
  private wake: (() => void) | undefined;
  constructor(readonly signal: AbortSignal) {
    signal.addEventListener("abort", () => this.push(new ConnectError("aborted", Code.Canceled)));
  }
  push(item: Observation | Error | "end"): void {
    this.queue.push(item);
    this.wake?.();
  }
  send(what: Observation["what"]): void {
    this.push(create(ObservationSchema, { what } as never));
  }
  synced(): void {
    this.push(create(ObservationSchema, { what: { case: "synced", value: {} } }));
  }
  heartbeat(): void {
    this.push(create(ObservationSchema, { what: { case: "heartbeat", value: {} } }));
  }
  goodbye(reason: string, reconnectAfter: number): void {
    this.push(create(ObservationSchema, { what: { case: "goodbye", value: { reason, reconnectAfter } } }));
  }
  async *[Symbol.asyncIterator](): AsyncGenerator<Observation> {
    for (;;) {
      while (this.queue.length === 0) await new Promise<void>((resolve) => (this.wake = resolve));
      const item = this.queue.shift()!;
      if (item === "end") return;
      if (item instanceof Error) throw item;
      yield item;
    }
  }
}

function setUp() {
  const streams: Stream[] = [];
  const links: Link[] = [];
  const told: string[] = [];
  const follower = new Follower(
    (signal) => {
      const stream = new Stream(signal);
      streams.push(stream);
      return stream;
    },
    {
      state: (state, generation, present) => told.push(`${generation} ${state.election}${present ? " present" : ""}`),
      synced: (generation) => told.push(`${generation} synced`),
      certainty: (certainty) => told.push(certainty === undefined ? "certain" : `certain=${certainty.certain}`),
      link: (link) => links.push(link),
      gap: (from, to) => told.push(`gap ${to - from}`),
    },
    () => 0,
  );
  const last = () => links.at(-1)!;
  return { streams, links, told, follower, last };
}

const settle = () => vi.advanceTimersByTimeAsync(0);

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

async function live() {
  const all = setUp();
  all.follower.start();
  all.streams[0]!.synced();
  await settle();
  expect(all.last().state).toBe("live");
  return all;
}

describe("a follower", () => {
  test("tells present states from changes", async () => {
    const { streams, told, follower } = setUp();
    follower.start();
    streams[0]!.send({ case: "state", value: held("k", "a", 1, "w") });
    streams[0]!.synced();
    streams[0]!.send({ case: "state", value: held("k", "b", 2, "w") });
    await settle();
    expect(told).toEqual(["1 a present", "1 synced", "certain", "1 b"]);
    follower.stop();
    expect(streams[0]!.signal.aborted).toBe(true);
  });

  test("connects again at once after a cut, and a short one is a short gap", async () => {
    const { streams, told, last, follower } = await live();
    streams[0]!.push(new ConnectError("missing trailer", Code.Internal));
    await settle();
    await vi.advanceTimersByTimeAsync(40);
    expect(streams).toHaveLength(2);
    streams[1]!.synced();
    await settle();
    expect(last().state).toBe("live");
    expect(told.at(-1)).toMatch(/^gap \d\d?$/);
    follower.stop();
  });

  test("backs off while the agent is away, and reports since when", async () => {
    const { streams, last, follower, told } = await live();
    const cut = Date.now();
    streams[0]!.push(new TypeError("Failed to fetch"));
    await settle();
    const opened: number[] = [];
    for (let at = 0; at < 30_000; at += 50) {
      await vi.advanceTimersByTimeAsync(50);
      const stream = streams.at(-1)!;
      if (opened.length < streams.length - 1) {
        opened.push(Date.now() - cut);
        stream.push(new TypeError("Failed to fetch"));
      }
    }
    expect(last()).toMatchObject({ state: "lost", since: cut });
    expect(opened[0]).toBeLessThanOrEqual(100);
    // Twice as long each time, up to a bound.
    expect(opened.length).toBeGreaterThan(6);
    expect(opened.length).toBeLessThan(16);
    await vi.advanceTimersByTimeAsync(10_000);
    streams.at(-1)!.synced();
    await settle();
    expect(last().state).toBe("live");
    expect(told.some((line) => line.startsWith("gap ") && Number(line.slice(4)) >= 30_000)).toBe(true);
    follower.stop();
  });

  test("opens the next stream at Goodbye before it leaves the old one", async () => {
    const { streams, told, links, follower } = await live();
    streams[0]!.goodbye("AGE", 200);
    await settle();
    expect(streams).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(220);
    expect(streams).toHaveLength(2);
    streams[0]!.send({ case: "state", value: held("k", "late", 1, "w") });
    await settle();
    expect(told).toContain("1 late");
    expect(streams[0]!.signal.aborted).toBe(false);
    streams[1]!.synced();
    await settle();
    expect(streams[0]!.signal.aborted).toBe(true);
    expect(links.map((link) => link.state)).toEqual(["connecting", "live", "live"]);
    expect(told.filter((line) => line.startsWith("gap"))).toEqual([]);
    follower.stop();
  });

  test("has a gap if the old stream ends before the next one is synced", async () => {
    const { streams, told, last, follower } = await live();
    streams[0]!.goodbye("SHUTDOWN", 1_000);
    streams[0]!.push("end");
    await settle();
    expect(last().state).toBe("lost");
    await vi.advanceTimersByTimeAsync(1_000);
    expect(streams).toHaveLength(2);
    streams[1]!.push(new TypeError("Failed to fetch"));
    await vi.advanceTimersByTimeAsync(2_000);
    streams.at(-1)!.synced();
    await settle();
    expect(last().state).toBe("live");
    expect(told.at(-1)).toMatch(/^gap \d{4}$/);
    follower.stop();
  });

  test("does not wait for a stream that fell silent", async () => {
    const { streams, told, follower } = await live();
    for (let i = 0; i < 4; i += 1) {
      await vi.advanceTimersByTimeAsync(5_000);
      streams[0]!.heartbeat();
      await settle();
    }
    expect(streams).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(14_000);
    expect(streams[0]!.signal.aborted).toBe(true);
    expect(streams.length).toBeGreaterThanOrEqual(2);
    streams.at(-1)!.synced();
    await settle();
    // The gap begins when something was heard last, not when the silence was noticed.
    expect(told.some((line) => line.startsWith("gap ") && Number(line.slice(4)) >= 12_500)).toBe(true);
    follower.stop();
  });

  test("connects again at once after the machine slept", async () => {
    const { streams, follower } = await live();
    vi.setSystemTime(Date.now() + 3_600_000);
    await vi.advanceTimersByTimeAsync(1_010);
    expect(streams[0]!.signal.aborted).toBe(true);
    expect(streams).toHaveLength(2);
    follower.stop();
  });

  test("tries at once when the network is back", async () => {
    const { streams, follower } = await live();
    for (let i = 0; i < 8; i += 1) {
      streams.at(-1)!.push(new TypeError("Failed to fetch"));
      await settle();
      if (i < 7) follower.wake();
      await settle();
    }
    const before = streams.length;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(streams).toHaveLength(before);
    follower.wake();
    expect(streams).toHaveLength(before + 1);
    follower.stop();
  });

  test.each([Code.Unauthenticated, Code.PermissionDenied, Code.Unimplemented])("does not insist when refused (%i)", async (code) => {
    const { streams, last, follower } = setUp();
    follower.start();
    streams[0]!.push(new ConnectError("no", code));
    await vi.advanceTimersByTimeAsync(60_000);
    expect(streams).toHaveLength(1);
    expect(last().state).toBe("refused");
    follower.again();
    expect(streams).toHaveLength(2);
    follower.stop();
  });

  test("asks for another token at Goodbye UNAUTHENTICATED", async () => {
    const { streams, last, follower } = await live();
    streams[0]!.goodbye("UNAUTHENTICATED", 0);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(last()).toMatchObject({ state: "refused", failure: { trouble: "unauthenticated" } });
    expect(streams).toHaveLength(1);
    follower.stop();
  });

  test("leaves a full agent alone for a while", async () => {
    const { streams, follower } = setUp();
    follower.start();
    streams[0]!.push(new ConnectError("as many streams as it takes", Code.ResourceExhausted));
    await vi.advanceTimersByTimeAsync(9_000);
    expect(streams).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(streams).toHaveLength(2);
    follower.stop();
  });

  test("leaves the stream while the page is hidden", async () => {
    const { streams, last, follower } = await live();
    follower.pause();
    expect(streams[0]!.signal.aborted).toBe(true);
    await vi.advanceTimersByTimeAsync(120_000);
    expect(streams).toHaveLength(1);
    expect(last().state).toBe("paused");
    follower.wake();
    expect(streams).toHaveLength(2);
    follower.stop();
  });

  test("is certain again with a new stream that does not say otherwise", async () => {
    const { streams, told, follower } = await live();
    streams[0]!.push(create(ObservationSchema, { what: { case: "certainty", value: { certain: false, unconfirmedFor: 5n } } }));
    await settle();
    expect(told.at(-1)).toBe("certain=false");
    streams[0]!.push("end");
    await vi.advanceTimersByTimeAsync(10);
    streams[1]!.push(create(ObservationSchema, { what: { case: "certainty", value: { certain: false } } }));
    streams[1]!.synced();
    await settle();
    expect(told.filter((line) => line === "certain")).toHaveLength(1);
    streams[1]!.push("end");
    await vi.advanceTimersByTimeAsync(10);
    streams[2]!.synced();
    await settle();
    expect(told.filter((line) => line === "certain")).toHaveLength(2);
    follower.stop();
  });
});
