import { Component } from "preact";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Api } from "../api/client";
import { type Filter, type Row, keyOf, listed } from "../live/elections";
import { type Live, type Polled, useLive, usePoll, useTerms } from "../live/hooks";
import { scrolledTo, windowOf } from "../live/window";
import { LinkBadge, LiveNotices } from "../parts/notices";
import { Name, Value } from "../parts/text";
import { Time, TimeLeft } from "../parts/time";
import { plural, vacancy } from "../parts/words";
import { type Route, hrefOf, replaceRoute } from "../route";

type Place = Extract<Route, { page: "elections" }>;

/** Waiters are counted up to this many. */
const MOST_WAITERS = 5_000;
const WIDE_ROW = 44;
const NARROW_ROW = 116;
/** Below this width of the table, a row has several lines: the style sheet has the same number. */
const NARROW = 760;
const AROUND = 4;
/** A row that is drawn so long after its change does not glow any more, in ms. */
const GLOW = 1_600;

interface Waiting {
  counts: Map<string, number>;
  /** There are more than were counted. */
  more: boolean;
}

async function countWaiters(api: Api, signal: AbortSignal, kind: string | undefined): Promise<Waiting> {
  const counts = new Map<string, number>();
  let pageToken = "";
  let total = 0;
  do {
    const page = await api.election.listWaiters(
      { kind: kind ?? "", allKinds: kind === undefined, pageSize: 1000, pageToken },
      { signal },
    );
    for (const waiter of page.waiters) {
      const key = keyOf(waiter.kind, waiter.election);
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    total += page.waiters.length;
    pageToken = page.nextPageToken;
  } while (pageToken !== "" && total < MOST_WAITERS);
  return { counts, more: pageToken !== "" };
}

async function listKinds(api: Api, signal: AbortSignal): Promise<string[]> {
  const kinds: string[] = [];
  let pageToken = "";
  do {
    const page = await api.election.listKinds({ pageSize: 1000, pageToken }, { signal });
    kinds.push(...page.kinds);
    pageToken = page.nextPageToken;
  } while (pageToken !== "" && kinds.length < 5_000);
  return kinds;
}

export function ElectionsPage({ place }: { place: Place }) {
  const kinds = usePoll(listKinds, 15_000, []);
  const waiters = usePoll((api, signal) => countWaiters(api, signal, place.kind), 5_000, [place.kind]);
  // More elections than an agent sends on one stream: then only those that begin with the prefix are asked for.
  const [narrowed, setNarrowed] = useState(false);
  useEffect(() => setNarrowed(false), [place.kind]);
  const scope = {
    ...(place.kind === undefined ? {} : { kind: place.kind }),
    ...(narrowed && place.kind !== undefined && place.prefix !== "" ? { prefix: place.prefix } : {}),
  };
  const live = useLive(scope, { leaveWhenHidden: true });
  // The other limit, that of streams, has another text.
  const refusal = live.link.state === "lost" && live.link.failure?.trouble === "exhausted" ? live.link.failure.detail : "";
  const tooMany = refusal.includes("elections");
  useEffect(() => {
    if (tooMany && place.kind !== undefined && place.prefix !== "") setNarrowed(true);
  }, [tooMany, place.kind, place.prefix]);

  const keys = useListed(live, place);
  const knownKinds = useKinds(kinds, live, place.kind);
  const held = live.elections.rows.size - live.elections.vacant;
  const change = (part: Partial<Place>) => replaceRoute({ ...place, ...part });

  return (
    <section class="page tall" aria-labelledby="title">
      <div class="bar">
        <h1 id="title" tabIndex={-1}>
          Elections
        </h1>
        <LinkBadge live={live} />
        <span class="summary">
          {plural(held, "leader")}, {live.elections.vacant.toLocaleString()} vacant, {plural(live.elections.changes, "change")} seen
        </span>
        <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
          <label>
            Kind
            <select
              value={place.kind === undefined ? "*" : `=${place.kind}`}
              onChange={(event) => {
                const value = event.currentTarget.value;
                change({ kind: value === "*" ? undefined : value.slice(1) });
              }}
            >
              <option value="*">all kinds</option>
              {knownKinds.map((kind) => (
                <option key={kind} value={`=${kind}`}>
                  {kind}
                </option>
              ))}
            </select>
          </label>
          <label>
            Name begins with
            <input
              type="search"
              value={place.prefix}
              maxLength={256}
              autoComplete="off"
              spellcheck={false}
              dir="auto"
              onInput={(event) => change({ prefix: event.currentTarget.value })}
            />
          </label>
          <label>
            Show
            <select value={place.show} onChange={(event) => change({ show: event.currentTarget.value as Place["show"] })}>
              <option value="all">all</option>
              <option value="held">held</option>
              <option value="vacant">vacant</option>
            </select>
          </label>
          <label>
            Order
            <select value={place.order} onChange={(event) => change({ order: event.currentTarget.value as Place["order"] })}>
              <option value="name">by name</option>
              <option value="change">latest change first</option>
            </select>
          </label>
        </form>
      </div>
      <LiveNotices live={live} />
      {tooMany && (
        <div class="notice info">
          <strong>Too many elections for one page.</strong> Choose a kind, and type how the names begin.
        </div>
      )}
      <ElectionTable keys={keys} live={live} waiters={waiters} filtered={place.prefix !== "" || place.show !== "all"} />
    </section>
  );
}

function useKinds(kinds: Polled<string[]>, live: Live, chosen: string | undefined): string[] {
  const membership = live.elections.membership;
  return useMemo(() => {
    const all = new Set(kinds.value ?? []);
    if (chosen !== undefined) all.add(chosen);
    for (const row of live.elections.rows.values()) all.add(row.kind);
    return [...all].sort();
    // Rows come one by one when the page is opened: the set is made anew for each drawing only, which is throttled.
  }, [kinds.value, chosen, membership]);
}

/** The keys of the rows to list: made anew only when that may have changed them, and not for every change of a row. */
function useListed(live: Live, place: Place): string[] {
  const { elections } = live;
  const filter: Filter = { kind: place.kind, prefix: place.prefix, show: place.show, order: place.order };
  const phases = filter.show === "all" ? 0 : elections.phases;
  const changes = filter.order === "name" ? 0 : elections.changes;
  return useMemo(
    () => listed(elections.rows.values(), filter).map((row) => row.key),
    [elections, elections.membership, phases, changes, filter.kind, filter.prefix, filter.show, filter.order],
  );
}

interface TableProps {
  keys: string[];
  live: Live;
  waiters: Polled<Waiting>;
  filtered: boolean;
}

export function ElectionTable({ keys, live, waiters, filtered }: TableProps) {
  const scroller = useRef<HTMLDivElement>(null);
  const [scrolled, setScrolled] = useState(0);
  const [size, setSize] = useState({ width: 1000, height: 600, bar: 0 });
  const [active, setActive] = useState<string | undefined>();
  const [within, setWithin] = useState(false);
  const focusNext = useRef(false);
  const rows = live.elections.rows;
  const narrow = size.width < NARROW;
  const rowHeight = narrow ? NARROW_ROW : WIDE_ROW;

  useLayoutEffect(() => {
    const element = scroller.current;
    if (element === null) return;
    const measure = () => setSize({
        width: element.clientWidth,
        height: element.clientHeight,
        bar: element.offsetWidth - element.clientWidth,
      });
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  const { first, end } = windowOf(scrolled, size.height, rowHeight, keys.length, AROUND);
  const shown = keys.slice(first, end);
  // The row that has the focus stays, wherever the list is scrolled to.
  const activeIndex = active === undefined ? -1 : keys.indexOf(active);
  const activeIsDrawn = activeIndex >= first && activeIndex < end;
  const drawn: [string, number][] = shown.map((key, index) => [key, first + index]);
  if (within && activeIndex >= 0 && !activeIsDrawn) drawn.push([keys[activeIndex]!, activeIndex]);
  const firstSeen = Math.min(keys.length - 1, Math.max(0, Math.ceil(scrolled / rowHeight)));
  const tabStop = activeIndex >= 0 && (activeIsDrawn || within) ? active : keys[firstSeen];

  useTerms(live, () => {
    const exact = windowOf(scrolled, size.height, rowHeight, keys.length, 0);
    return keys.slice(exact.first, exact.end).flatMap((key) => rows.get(key) ?? []);
  });

  useLayoutEffect(() => {
    if (!focusNext.current || active === undefined) return;
    focusNext.current = false;
    const links = scroller.current?.querySelectorAll<HTMLElement>("a[data-key]") ?? [];
    for (const link of links) if (link.dataset["key"] === active) link.focus({ preventScroll: true });
  });

  // For those who measure: when the first row was drawn.
  const anyDrawn = drawn.length > 0;
  useLayoutEffect(() => {
    if (anyDrawn) performance.mark("first-row");
  }, [anyDrawn]);

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.altKey || event.ctrlKey || event.metaKey || keys.length === 0) return;
    const page = Math.max(1, Math.floor(size.height / rowHeight) - 1);
    const from = activeIndex >= 0 ? activeIndex : firstSeen;
    const steps: Record<string, number> = {
      ArrowDown: from + 1,
      ArrowUp: from - 1,
      PageDown: from + page,
      PageUp: from - page,
      Home: 0,
      End: keys.length - 1,
    };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const to = Math.min(keys.length - 1, Math.max(0, step));
    const element = scroller.current;
    if (element !== null) {
      element.scrollTop = scrolledTo(to, element.scrollTop, size.height, rowHeight);
      setScrolled(element.scrollTop);
    }
    focusNext.current = true;
    setActive(keys[to]);
  };
  const onFocus = useCallback((event: FocusEvent) => {
    setWithin(true);
    const row = (event.target as HTMLElement).closest<HTMLElement>("[data-row]");
    if (row !== null) setActive(row.dataset["row"]);
  }, []);

  const counts = waiters.value?.counts;
  const noWaiters =
    waiters.failure === undefined
      ? undefined
      : waiters.failure.trouble === "unimplemented"
        ? "this agent does not list who waits"
        : waiters.failure.summary;
  const unsure = live.doubt !== undefined || live.link.state === "lost" || live.link.state === "refused";

  return (
    <div
      class={`table elections${narrow ? " narrow" : ""}${unsure ? " unsure" : ""}`}
      role="table"
      aria-label="Elections"
      aria-rowcount={keys.length + 1}
    >
      <div role="rowgroup" class="head" style={{ paddingInlineEnd: `${size.bar}px` }}>
        <div role="row" class="row" aria-rowindex={1}>
          <span role="columnheader">Election</span>
          <span role="columnheader">Leader</span>
          <span role="columnheader">Value</span>
          <span role="columnheader">Token</span>
          <span role="columnheader">Since</span>
          <span role="columnheader">Time left</span>
          <span role="columnheader" title={noWaiters ?? "campaigns that wait through this agent"}>
            Waiters
          </span>
        </div>
      </div>
      <div
        role="rowgroup"
        class="scroller"
        ref={scroller}
        tabIndex={-1}
        onScroll={(event) => setScrolled(event.currentTarget.scrollTop)}
        onKeyDown={onKeyDown}
        onFocusCapture={onFocus}
        onBlurCapture={() => setWithin(false)}
      >
        <div class="sizer" role="presentation" style={{ height: `${Math.max(1, keys.length) * rowHeight}px` }}>
          {drawn.map(([key, index]) => {
            const row = rows.get(key);
            return row === undefined ? null : (
              <ElectionRow
                key={key}
                row={row}
                index={index}
                top={index * rowHeight}
                height={rowHeight}
                stop={key === tabStop}
                waiters={counts === undefined ? undefined : (counts.get(key) ?? 0)}
                more={waiters.value?.more ?? false}
              />
            );
          })}
          {keys.length === 0 && (
            <div role="row" class="row none">
              <span role="cell">{emptiness(live, filtered)}</span>
            </div>
          )}
        </div>
      </div>
    </div>
  );
}

function emptiness(live: Live, filtered: boolean): string {
  if (live.link.state === "connecting") return "Asking the agent…";
  if (live.link.state === "lost" && live.elections.rows.size === 0) return "Nothing is known yet.";
  if (live.link.state === "refused") return "The agent does not show its elections.";
  if (live.elections.rows.size === 0) return "Nobody leads. Elections appear here when a candidate is elected.";
  return filtered ? "No election matches." : "Nobody leads.";
}

interface RowProps {
  row: Row;
  index: number;
  top: number;
  height: number;
  stop: boolean;
  waiters: number | undefined;
  more: boolean;
}

/** A row, drawn only when it has changed. */
class ElectionRow extends Component<RowProps> {
  private glows = 0;
  private glowed = 0;

  override shouldComponentUpdate(next: RowProps): boolean {
    const now = this.props;
    return (
      next.row !== now.row ||
      next.index !== now.index ||
      next.top !== now.top ||
      next.height !== now.height ||
      next.stop !== now.stop ||
      next.waiters !== now.waiters ||
      next.more !== now.more
    );
  }

  override render() {
    const { row, index, top, height, stop, waiters, more } = this.props;
    if (row.changedAt > this.glowed && Date.now() - row.changedAt < GLOW) {
      this.glows += 1;
      this.glowed = row.changedAt;
    }
    // Two equal animations under two names: changing the name starts it again.
    const glow = this.glows === 0 ? "" : this.glows % 2 === 0 ? " glow-a" : " glow-b";
    const tabIndex = stop ? 0 : -1;
    return (
      <div
        role="row"
        class={`row${row.held ? "" : " vacant"}${glow}`}
        aria-rowindex={index + 2}
        data-row={row.key}
        style={{ transform: `translateY(${top}px)`, height: `${height}px` }}
      >
        <span role="cell" class="election" dir="ltr">
          <a
            href={hrefOf({ page: "election", kind: row.kind, election: row.election })}
            data-key={row.key}
            tabIndex={tabIndex}
          >
            <span class="kind">
              <Name text={row.kind} />/
            </span>
            <Name text={row.election} />
          </a>
        </span>
        <span role="cell" class="leader" dir="auto">
          {row.held ? (
            <Name text={row.leader} />
          ) : (
            <>
              <span class="badge quiet">vacant</span> <span class="cause">{vacancy(row.cause, row.leader)}</span>{" "}
              {row.leader !== "" && <Name text={row.leader} class="faint" />}
            </>
          )}
          {row.missed && (
            <span class="missed" title="Others may have led before this state: it follows a gap.">
              gap<span class="sr"> before this state</span>
            </span>
          )}
        </span>
        <span role="cell" class="value" dir="auto">
          <Value text={row.value} tabIndex={tabIndex} />
        </span>
        <span role="cell" class="token" title="fencing token">
          {row.token === 0 ? "–" : row.token}
        </span>
        <span role="cell" class="since">
          {row.held ? <Time at={row.electedAt} /> : row.changedAt > 0 ? <Time at={row.changedAt} /> : "–"}
        </span>
        <span role="cell" class="left-cell">
          {row.held ? <TimeLeft until={row.until} full={row.full} /> : <span class="faint">–</span>}
        </span>
        <span role="cell" class="waiters">
          {waiters === undefined ? <span class="faint">–</span> : waiters === 0 ? <span class="faint">0</span> : `${waiters}${more ? "+" : ""}`}
          <span class="sr"> waiters</span>
        </span>
      </div>
    );
  }
}

