import type { ComponentChildren } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import type { Failure } from "../api/errors";
import type { Live } from "../live/hooks";
import { SHORT_GAP } from "../live/hooks";
import { visible } from "./text";
import { Counting, Time, duration } from "./time";

export function Notice({ tone, children, title }: { tone: "info" | "warning" | "error"; title: string; children?: ComponentChildren }) {
  return (
    <div class={`notice ${tone}`}>
      <strong>{title}</strong> {children}
    </div>
  );
}

const HINTS: Partial<Record<Failure["trouble"], string>> = {
  unauthenticated: "Give a token.",
  forbidden: "Ask whoever writes the agent's policies, or use another token.",
  unimplemented: "It is older than this page, or the function is switched off.",
  unreachable: "The page goes on trying.",
  unavailable: "The page goes on trying.",
};

/** What went wrong, what the agent said, and what to do. */
export function Trouble({ failure, what }: { failure: Failure; what?: string }) {
  const tone = failure.trouble === "unimplemented" || failure.trouble === "not found" ? "info" : "warning";
  return (
    <Notice tone={tone} title={what === undefined ? failure.summary : `${what}: ${failure.summary}`}>
      {HINTS[failure.trouble] ?? ""} {failure.detail !== "" && <span class="detail">{visible(failure.detail)}</span>}
    </Notice>
  );
}

function Since({ at }: { at: number }) {
  const text = useCallback((now: number) => duration(Math.max(0, now - at)), [at]);
  return (
    <>
      <Time at={at} />{" "}
      {/* Not told to screen readers each second: it stands in a live region. */}
      <span aria-hidden="true">
        (<Counting text={text} />)
      </span>
    </>
  );
}

/** True once something has lasted for a while: what is over sooner is not worth a word. */
function useLasting(since: number | undefined, ms: number): boolean {
  const [lasting, setLasting] = useState(false);
  useEffect(() => {
    setLasting(false);
    if (since === undefined) return;
    const timer = setTimeout(() => setLasting(true), Math.max(0, since + ms - Date.now()));
    return () => clearTimeout(timer);
  }, [since, ms]);
  return lasting;
}

/** Whether the page is up to date, as far as that is news: lost connections, gaps, and an agent that is not certain. */
export function LiveNotices({ live }: { live: Live }) {
  const { link, doubt, gap } = live;
  const lost = useLasting(link.state === "lost" || link.state === "connecting" ? link.since : undefined, SHORT_GAP);
  useEffect(() => {
    if (gap === undefined) return;
    const timer = setTimeout(() => live.forgetGap(), 60_000);
    return () => clearTimeout(timer);
  }, [gap]);
  return (
    <div class="notices" role="status">
      {link.state === "refused" && link.failure !== undefined && link.failure.trouble !== "unauthenticated" && (
        <div class="notice warning">
          <strong>{link.failure.summary}</strong> {HINTS[link.failure.trouble] ?? ""}{" "}
          <span class="detail">{visible(link.failure.detail)}</span>{" "}
          <button type="button" onClick={() => live.again()}>
            Try again
          </button>
        </div>
      )}
      {link.state === "lost" && link.failure?.trouble === "exhausted" && (
        <Notice tone="warning" title="The agent refuses a stream: a limit is reached.">
          The page tries again by itself. <span class="detail">{visible(link.failure.detail)}</span>
        </Notice>
      )}
      {link.state === "lost" && link.failure?.trouble !== "exhausted" && lost && (
        <Notice tone="warning" title="Not connected to the agent">
          since <Since at={link.since} />: what is shown may be old. The page tries again by itself.{" "}
          {link.failure !== undefined && <span class="detail">{visible(link.failure.detail)}</span>}
        </Notice>
      )}
      {link.state === "connecting" && lost && <Notice tone="info" title="Connecting…" />}
      {doubt !== undefined && (
        <Notice tone="warning" title="The agent is not certain">
          since <Since at={doubt.since} />: no quorum of lease nodes confirms these states, and they may be old. A vacancy is
          never guessed. {doubt.reason !== "" && <span class="detail">{visible(doubt.reason)}</span>}
        </Notice>
      )}
      {gap !== undefined && link.state === "live" && (
        <div class="notice info gap">
          <strong>Not connected</strong> from <Time at={gap.from} /> to <Time at={gap.to} /> ({duration(gap.to - gap.from)}).
          What is shown is the present state; what happened in between was not seen.{" "}
          <button type="button" onClick={() => live.forgetGap()}>
            Dismiss
          </button>
        </div>
      )}
    </div>
  );
}

/** A dot with a word: how the page is connected. */
export function LinkBadge({ live }: { live: Live }) {
  const words: Record<Live["link"]["state"], string> = {
    connecting: "connecting",
    live: live.doubt === undefined ? "live" : "not certain",
    lost: "reconnecting",
    refused: "refused",
    paused: "paused",
  };
  const late = useLasting(live.link.state === "live" ? undefined : live.link.since, SHORT_GAP);
  const state = live.link.state === "lost" && !late ? "live" : live.link.state;
  const tone = state === "live" ? (live.doubt === undefined ? "good" : "bad") : state === "connecting" ? "quiet" : "bad";
  return <span class={`badge ${tone}`} data-link={live.link.state}>{words[state]}</span>;
}
