import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Api, askForToken, session, theApi } from "../api/client";
import { type Failure, failureOf } from "../api/errors";
import type { Observation, State } from "@election-agent/client/proto";
import { Elections, type Row } from "./elections";
import { Follower, HEARTBEAT, type Link } from "./follower";
import { Refresher } from "./refresher";

/** What to observe. */
export interface Scope {
  kind?: string;
  election?: string;
  prefix?: string;
}

export interface Gap {
  from: number;
  to: number;
}

export interface Doubt {
  since: number;
  reason: string;
}

/** A change as a page hears it. */
export interface Heard {
  state: State;
  at: number;
  present: boolean;
  changed: boolean;
}

export interface Live {
  elections: Elections;
  link: Link;
  /** The agent is not certain that the states are the present ones. */
  doubt: Doubt | undefined;
  /** The last time that nothing was heard for long enough to matter. */
  gap: Gap | undefined;
  forgetGap(): void;
  again(): void;
  redraw(): void;
}

/** Cuts that are over sooner are no news for people, in ms. */
export const SHORT_GAP = 1_500;
/** Drawn at most once in so long, in ms. */
const FRAME = 60;
/** A page that nobody sees leaves its stream after so long, in ms: browsers open few connections to an agent. */
const HIDDEN = 60_000;

/** Calls a function at the next frame, and then not sooner than after FRAME. */
export function throttled(draw: () => void): { request(): void; cancel(): void } {
  let last = -Infinity;
  let waiting = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let frame = 0;
  const fire = () => {
    frame = requestAnimationFrame(() => {
      waiting = false;
      last = performance.now();
      draw();
    });
  };
  return {
    request() {
      if (waiting) return;
      waiting = true;
      const wait = last + FRAME - performance.now();
      if (wait <= 0) fire();
      else timer = setTimeout(fire, wait);
    },
    cancel() {
      waiting = false;
      clearTimeout(timer);
      cancelAnimationFrame(frame);
    },
  };
}

function observeScope(api: Api, scope: Scope, signal: AbortSignal): AsyncIterable<Observation> {
  const what =
    scope.election !== undefined
      ? ({ case: "election", value: scope.election } as const)
      : scope.prefix !== undefined && scope.prefix !== ""
        ? ({ case: "prefix", value: scope.prefix } as const)
        : scope.kind === undefined
          ? ({ case: "allKinds", value: true } as const)
          : ({ case: undefined } as const);
  return api.observe({ kind: scope.kind ?? "", heartbeat: HEARTBEAT, what }, signal);
}

/** Follows elections while a component is shown. */
export function useLive(scope: Scope, options: { leaveWhenHidden: boolean; heard?: (heard: Heard) => void }): Live {
  const [, setDrawn] = useState(0);
  const [link, setLink] = useState<Link>({ state: "connecting", since: Date.now() });
  const [doubt, setDoubt] = useState<Doubt | undefined>();
  const [gap, setGap] = useState<Gap | undefined>();
  const followerRef = useRef<Follower | undefined>(undefined);
  const heard = useRef(options.heard);
  heard.current = options.heard;
  const ofSession = session.value;
  const scopeKey = JSON.stringify([scope.kind, scope.election, scope.prefix, ofSession]);
  const elections = useMemo(() => new Elections(), [scopeKey]);
  const drawing = useMemo(() => throttled(() => setDrawn((drawn) => drawn + 1)), []);

  // Before the first frame, so that the stream is on its way while the page is drawn.
  useLayoutEffect(() => {
    const api = theApi();
    setDoubt(undefined);
    setGap(undefined);
    const follower = new Follower((signal) => observeScope(api, scope, signal), {
      state(state, generation, present) {
        const at = Date.now();
        const changed = elections.apply(state, generation, present, at);
        heard.current?.({ state, at, present, changed });
        drawing.request();
      },
      synced(generation) {
        elections.synced(generation, Date.now());
        drawing.request();
      },
      certainty(certainty) {
        setDoubt(
          certainty === undefined || certainty.certain
            ? undefined
            : { since: Date.now() - Number(certainty.unconfirmedFor), reason: certainty.reason },
        );
      },
      link(next) {
        setLink(next);
        if (next.failure?.trouble === "unauthenticated") askForToken(next.failure.detail, ofSession);
        // What the next stream does not say is true.
        if (next.state === "live") drawing.request();
      },
      gap(from, to) {
        if (to - from >= SHORT_GAP) setGap({ from, to });
      },
    });
    followerRef.current = follower;
    follower.start();

    let hide: ReturnType<typeof setTimeout> | undefined;
    const look = () => {
      clearTimeout(hide);
      if (!document.hidden) follower.wake();
      else if (options.leaveWhenHidden) hide = setTimeout(() => follower.pause(), HIDDEN);
    };
    const wake = () => follower.wake();
    document.addEventListener("visibilitychange", look);
    window.addEventListener("online", wake);
    window.addEventListener("pageshow", wake);
    return () => {
      clearTimeout(hide);
      document.removeEventListener("visibilitychange", look);
      window.removeEventListener("online", wake);
      window.removeEventListener("pageshow", wake);
      follower.stop();
      drawing.cancel();
    };
  }, [scopeKey]);

  return {
    elections,
    link,
    doubt,
    gap,
    forgetGap: () => setGap(undefined),
    again: () => followerRef.current?.again(),
    redraw: () => drawing.request(),
  };
}

/** Reads the terms of the rows that are seen again and again: extensions are not events. */
export function useTerms(live: Live, seen: () => readonly Row[]): void {
  const now = useRef(seen);
  now.current = () => (document.hidden || live.doubt !== undefined || live.link.state !== "live" ? [] : seen());
  useEffect(() => {
    const refresher = new Refresher(
      () => now.current(),
      async ({ kind, election }) => {
        try {
          live.elections.refresh(await theApi().election.getElection({ kind, election }), Date.now());
          live.redraw();
          return "on";
        } catch (error) {
          const { trouble } = failureOf(error);
          return trouble === "forbidden" || trouble === "unimplemented" ? "stop" : "pause";
        }
      },
    );
    refresher.start();
    return () => refresher.stop();
  }, [live.elections]);
}

/** What was polled last. */
export interface Polled<T> {
  value: T | undefined;
  failure: Failure | undefined;
  /** When `value` was asked for. */
  at: number;
  again(): void;
}

/** Asks again and again while the page is seen, and at once when it is seen again. Undefined `ask` asks nothing. */
export function usePoll<T>(
  ask: ((api: Api, signal: AbortSignal) => Promise<T>) | undefined,
  every: number,
  dependencies: readonly unknown[],
): Polled<T> {
  const [polled, setPolled] = useState<Omit<Polled<T>, "again">>({ value: undefined, failure: undefined, at: 0 });
  const again = useRef<() => void>(() => {});
  useEffect(() => {
    setPolled({ value: undefined, failure: undefined, at: 0 });
    if (ask === undefined) {
      again.current = () => {};
      return;
    }
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let failures = 0;
    let asking = false;
    const poll = async () => {
      if (asking) return;
      asking = true;
      clearTimeout(timer);
      const at = Date.now();
      let next = every;
      try {
        const value = await ask(theApi(), abort.signal);
        failures = 0;
        if (!abort.signal.aborted) setPolled({ value, failure: undefined, at });
      } catch (error) {
        if (abort.signal.aborted) return;
        const failure = failureOf(error);
        failures += 1;
        next = every * Math.min(4, failures);
        setPolled((before) => ({ ...before, failure }));
        if (["unimplemented", "unauthenticated", "forbidden"].includes(failure.trouble)) next = Infinity;
      }
      asking = false;
      if (abort.signal.aborted) return;
      if (Number.isFinite(next)) timer = setTimeout(() => void (document.hidden || poll()), next);
    };
    again.current = () => void poll();
    const look = () => void (document.hidden || poll());
    document.addEventListener("visibilitychange", look);
    window.addEventListener("online", look);
    void poll();
    return () => {
      abort.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
      window.removeEventListener("online", look);
    };
  }, [...dependencies, session.value, every, ask === undefined]);
  return { ...polled, again: () => again.current() };
}
