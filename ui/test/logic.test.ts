import { Code, ConnectError } from "@connectrpc/connect";
import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { apiBase } from "../src/api/base";
import { failureOf } from "../src/api/errors";
import { ChangeSchema, State_Cause } from "@election-agent/client/proto";
import { Elections, isLater, keyOf, listed } from "../src/live/elections";
import { entryOf, merged } from "../src/live/log";
import { due } from "../src/live/refresher";
import { scrolledTo, windowOf } from "../src/live/window";
import { linkOf, visible } from "../src/parts/text";
import { duration, exactInstant, instant, timeLeft } from "../src/parts/time";
import { bytesInWords, latencyInWords, quorumInWords } from "../src/pages/nodes";
import { revisions, rollout } from "../src/pages/pods";
import { hrefOf, parseRoute } from "../src/route";
import { javascript, python, shell, snippets } from "../src/snippets";
import { held, pod, vacant } from "./states";

describe("the API's base URL", () => {
  test.each([
    ["https://agent.example/ui/", "", "https://agent.example/"],
    ["https://agent.example/ui/index.html?x=1#/nodes", "", "https://agent.example/"],
    ["https://host:8443/some/prefix/ui/", "", "https://host:8443/some/prefix/"],
    ["https://host/gui/", "", "https://host/gui/"],
    ["https://host/", "", "https://host/"],
    ["https://pages.example/dash/", "https://agent.example", "https://agent.example/"],
    ["https://pages.example/dash/", "https://agent.example/p", "https://agent.example/p/"],
    ["https://pages.example/dash/", " https://agent.example/p/?q#f ", "https://agent.example/p/"],
  ])("of %s with %j is %s", (page, configured, base) => {
    expect(apiBase(page, configured)).toBe(base);
  });
});

describe("links", () => {
  test.each(["http://10.0.0.7:9000", "https://example.com/a?b=c", "HTTPS://EXAMPLE.COM"])("%s is one", (value) => {
    expect(linkOf(value)).toBeDefined();
  });
  test.each([
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    " https://example.com",
    "java\nscript:alert(1)",
    "10.0.0.7:9000",
    "//example.com",
    "https://example.com@evil.example/",
    "https://user:password@example.com/",
    "https://",
    "vbscript:x",
    "",
  ])("%j is none", (value) => {
    expect(linkOf(value)).toBeUndefined();
  });
});

describe("names", () => {
  test("show the characters that nobody sees", () => {
    expect(visible("a\u202egnp.exe")).toBe("a⟨U+202E⟩gnp.exe");
    expect(visible("a\nb\u200bc\u{e0041}")).toBe("a⟨U+000A⟩b⟨U+200B⟩c⟨U+E0041⟩");
  });
  test("keep the joiners of words and emoji", () => {
    expect(visible("می‌خواهم 👩‍👧")).toBe("می‌خواهم 👩‍👧");
  });
});

describe("times", () => {
  test("durations have two units", () => {
    expect([0, 999, 1_000, 59_999, 60_000, 61_000, 3_600_000, 90_061_000].map(duration)).toEqual([
      "0 ms",
      "999 ms",
      "1 s",
      "59 s",
      "1 min",
      "1 min 1 s",
      "1 h",
      "1 d 1 h",
    ]);
  });
  test("what is left is 0 only when it is over", () => {
    expect([-5, 0, 1, 1_000, 1_001, 60_000].map(timeLeft)).toEqual(["0 s", "0 s", "1 s", "1 s", "2 s", "1 min"]);
  });
  test("an instant of another day has its date, and the exact value has milliseconds", () => {
    const at = Date.UTC(2026, 2, 4, 12, 0, 0, 123);
    expect(instant(at, at)).not.toContain("2026");
    expect(instant(at, at + 10 * 86_400_000)).toContain("2026");
    expect(exactInstant(at)).toContain("2026-03-04T12:00:00.123Z");
  });
});

describe("the virtual list", () => {
  test("draws what is seen and a few rows around it", () => {
    expect(windowOf(0, 400, 40, 10_000, 4)).toEqual({ first: 0, end: 14 });
    expect(windowOf(40_000, 400, 40, 10_000, 4)).toEqual({ first: 996, end: 1014 });
    expect(windowOf(40_010, 400, 40, 10_000, 0)).toEqual({ first: 1000, end: 1011 });
  });
  test("stays within a list that has become shorter", () => {
    expect(windowOf(400_000, 400, 40, 20, 0)).toEqual({ first: 10, end: 20 });
    expect(windowOf(-50, 400, 40, 3, 4)).toEqual({ first: 0, end: 3 });
    expect(windowOf(0, 400, 40, 0, 4)).toEqual({ first: 0, end: 0 });
  });
  test("scrolls as little as needed", () => {
    expect(scrolledTo(5, 0, 400, 40)).toBe(0);
    expect(scrolledTo(10, 0, 400, 40)).toBe(40);
    expect(scrolledTo(2, 200, 400, 40)).toBe(80);
  });
});

describe("states", () => {
  test("follow each other by token and phase", () => {
    expect(isLater({ token: 2, held: true }, { token: 1, held: false })).toBe(true);
    expect(isLater({ token: 1, held: false }, { token: 1, held: true })).toBe(true);
    expect(isLater({ token: 1, held: true }, { token: 1, held: false })).toBe(false);
    expect(isLater({ token: 1, held: true }, { token: 1, held: true })).toBe(false);
  });

  const row = (elections: Elections, name = "a") => elections.rows.get(keyOf("k", name))!;

  test("present ones are no changes, later ones are", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1"), 1, true, 1_000);
    elections.synced(1, 1_001);
    expect(elections.changes).toBe(0);
    expect(row(elections)).toMatchObject({ held: true, leader: "w1", changedAt: 0, missed: false });
    elections.apply(vacant("k", "a", 1, State_Cause.EXPIRY), 1, false, 2_000);
    expect(row(elections)).toMatchObject({ held: false, leader: "w1", changedAt: 2_000, cause: State_Cause.EXPIRY });
    expect(elections.changes).toBe(1);
    expect(elections.vacant).toBe(1);
  });

  test("a missed state is marked", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1"), 1, true, 1_000);
    elections.apply(held("k", "a", 9, "w2", { missed: true }), 1, false, 2_000);
    expect(row(elections).missed).toBe(true);
  });

  test("what a new stream does not name has become vacant, unseen", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1"), 1, true, 0);
    elections.apply(held("k", "b", 2, "w1"), 1, true, 0);
    elections.synced(1, 0);
    elections.apply(held("k", "b", 2, "w1"), 2, true, 5_000);
    expect(row(elections).held).toBe(true);
    elections.synced(2, 5_000);
    expect(row(elections)).toMatchObject({ held: false, missed: true, changedAt: 5_000 });
    expect(row(elections, "b")).toMatchObject({ held: true, missed: false, changedAt: 0 });
  });

  test("another leader after a gap is a change that may have missed others", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1"), 1, true, 0);
    elections.synced(1, 0);
    elections.apply(held("k", "a", 7, "w2"), 2, true, 9_000);
    elections.synced(2, 9_000);
    expect(row(elections)).toMatchObject({ leader: "w2", missed: true, changedAt: 9_000 });
  });

  test("of two streams that overlap, the older one takes nothing back", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1"), 1, true, 0);
    elections.apply(held("k", "a", 2, "w2"), 2, true, 10);
    elections.apply(vacant("k", "a", 1, State_Cause.RESIGN), 1, false, 20);
    expect(row(elections)).toMatchObject({ held: true, token: 2 });
    elections.apply(held("k", "new", 3, "w3"), 1, false, 30);
    elections.synced(2, 40);
    expect(row(elections, "new").held).toBe(true);
  });

  test("a grant that was rolled back goes back to the earlier leader", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 5, "w2"), 1, true, 0);
    elections.apply(held("k", "a", 4, "w1", { cause: State_Cause.ROLLED_BACK }), 1, false, 10);
    expect(row(elections)).toMatchObject({ leader: "w1", token: 4 });
  });

  test("an extension refills the bar and is no change", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1", { remaining: 10_000 }), 1, true, 0);
    elections.refresh(held("k", "a", 1, "w1", { remaining: 9_000 }), 8_000);
    expect(row(elections)).toMatchObject({ until: 17_000, full: 10_000, changedAt: 0 });
    expect(elections.changes).toBe(0);
    // An answer that was overtaken does not shorten the term.
    elections.refresh(held("k", "a", 1, "w1", { remaining: 1_000 }), 8_001);
    expect(row(elections).until).toBe(17_000);
    elections.refresh(vacant("k", "a", 1, State_Cause.PRESENT), 20_000);
    expect(row(elections).held).toBe(false);
  });

  test("an event tells the cause of what was read before it came", () => {
    const elections = new Elections();
    elections.apply(held("k", "a", 1, "w1"), 1, true, 0);
    elections.refresh(vacant("k", "a", 1, State_Cause.PRESENT), 1_000);
    expect(row(elections)).toMatchObject({ held: false, cause: State_Cause.PRESENT });
    expect(elections.apply(vacant("k", "a", 1, State_Cause.EXPIRY), 1, false, 1_001)).toBe(true);
    expect(row(elections)).toMatchObject({ cause: State_Cause.EXPIRY, leader: "w1", changedAt: 1_000 });
    expect(elections.changes).toBe(1);
    expect(elections.apply(vacant("k", "a", 1, State_Cause.EXPIRY), 1, false, 1_002)).toBe(false);
  });

  test("only so many vacant elections are remembered", () => {
    const elections = new Elections();
    for (let i = 0; i < 6_500; i += 1) {
      elections.apply(held("k", `e${i}`, i + 1, "w"), 1, false, i);
      elections.apply(vacant("k", `e${i}`, i + 1, State_Cause.EXPIRY), 1, false, i);
    }
    expect(elections.rows.size).toBeLessThanOrEqual(6_001);
    expect(elections.rows.has("k/e6499")).toBe(true);
    expect(elections.rows.has("k/e0")).toBe(false);
    expect(elections.vacant).toBe(elections.rows.size);
  });

  test("are listed by kind, prefix, phase and order", () => {
    const elections = new Elections();
    elections.apply(held("b", "x1", 1, "w"), 1, true, 0);
    elections.apply(held("a", "x2", 2, "w"), 1, false, 5);
    elections.apply(vacant("a", "y", 3, State_Cause.RESIGN), 1, false, 9);
    const keys = (filter: object) =>
      listed(elections.rows.values(), { kind: undefined, prefix: "", show: "all", order: "name", ...filter }).map((r) => r.key);
    expect(keys({})).toEqual(["a/x2", "a/y", "b/x1"]);
    expect(keys({ kind: "a" })).toEqual(["a/x2", "a/y"]);
    expect(keys({ prefix: "x" })).toEqual(["a/x2", "b/x1"]);
    expect(keys({ show: "vacant" })).toEqual(["a/y"]);
    expect(keys({ order: "change" })).toEqual(["a/y", "a/x2", "b/x1"]);
  });
});

test("rows are read again when their term seems over, and every few seconds", () => {
  const elections = new Elections();
  elections.apply(held("k", "over", 1, "w", { remaining: 1_000 }), 1, true, 0);
  elections.apply(held("k", "old", 2, "w", { remaining: 60_000 }), 1, true, 0);
  elections.apply(held("k", "fresh", 3, "w", { remaining: 60_000 }), 1, true, 4_000);
  elections.apply(vacant("k", "vacant", 4, State_Cause.EXPIRY), 1, true, 0);
  const names = (now: number) => due([...elections.rows.values()], now).map((row) => row.election);
  expect(names(900)).toEqual([]);
  expect(names(1_500)).toEqual(["over"]);
  expect(names(5_500)).toEqual(["over", "old"]);
});

test("the log has each change once, the agent's time if it knows it, and gaps", () => {
  const seen = [
    entryOf(held("k", "a", 2, "w2", { cause: State_Cause.CAMPAIGN, missed: true }), 2_100, false),
    entryOf(held("k", "a", 1, "w1", { cause: State_Cause.PRESENT }), 1_000, false),
    { what: "gap", id: "gap 1500", from: 1_500, at: 2_050 } as const,
  ];
  const remembered = [
    create(ChangeSchema, { state: held("k", "a", 2, "w2", { cause: State_Cause.CAMPAIGN }), at: 2_090n }),
    create(ChangeSchema, { state: held("k", "a", 1, "w1", { cause: State_Cause.HANDOVER }), at: 500n }),
  ];
  const log = merged(seen, remembered);
  expect(log.map((entry) => (entry.what === "gap" ? "gap" : [entry.token, entry.at, entry.cause, entry.missed]))).toEqual([
    [2, 2_090, State_Cause.CAMPAIGN, true],
    "gap",
    [1, 500, State_Cause.HANDOVER, false],
  ]);
});

describe("routes", () => {
  test.each([
    { page: "elections", kind: undefined, prefix: "", show: "all", order: "name" },
    { page: "elections", kind: "a&b=c", prefix: "x#y", show: "vacant", order: "change" },
    { page: "election", kind: "batch", election: "ni%ght?ly#1 \u202e<script>" },
    { page: "nodes" },
    { page: "pods", namespace: "shop", deployment: "worker" },
    { page: "agent" },
  ] as const)("$page is read as it is written", (route) => {
    expect(parseRoute(hrefOf(route))).toEqual(route);
  });
  test.each(["#/elections/a", "#/x", "#/elections/%/b", "#/nodes/x"])("%s is unknown", (fragment) => {
    expect(parseRoute(fragment).page).toBe("unknown");
  });
});

describe("snippets", () => {
  test("quote for the shell", () => {
    expect(shell("nightly-1")).toBe("nightly-1");
    expect(shell("--help")).toBe("'--help'");
    expect(shell("it's $(rm -rf /) `x`")).toBe("'it'\\''s $(rm -rf /) `x`'");
    expect(shell("a\u202eb'\\")).toBe("$'a\\u202eb\\'\\\\'");
  });
  test("quote for Python", () => {
    expect(python('a"b\\c\u202e')).toBe('"a\\"b\\\\c\\u202e"');
  });
  test.each(['a"b\\c', "\u202e", "\u{1f600}\u{e0001}", "\u2028", "${x}`", "\u00fc"])("quote for JavaScript: %j", (text) => {
    const quoted = javascript(text);
    expect(new Function(`return ${quoted}`)()).toBe(text);
    expect(quoted).toMatch(/^[ -~\p{L}]*$/u);
  });
  test("name this agent, and a token only if it wants one", () => {
    const [eactl, py, ts, curl] = snippets("https://agent.example:8443/", "batch", "a b'c", false);
    expect(eactl!.text).toContain("ELECTION_AGENT_URL=https://agent.example:8443\n");
    expect(eactl!.text).toContain("--kind=batch --election='a b'\\''c' --");
    expect(curl!.text).toContain("https://agent.example:8443/election/batch/a%20b%27c");
    expect(py!.text).toContain(`with SyncAgent("https://agent.example:8443") as agent, agent.lead("a b'c", kind="batch") as term:`);
    expect(ts!.text).toContain(`new Agent("https://agent.example:8443");\nawait agent.lead("a b'c", { kind: "batch" }, async (term) =>`);
    expect(snippets("https://agent.example/p/", "k", "..", true).map((s) => s.text).join()).toContain("/p/election/k/%2E%2E");
    const wanted = snippets("https://agent.example/", "k", "e", true).map(({ text }) => text);
    expect(wanted[1]).toContain('SyncAgent("https://agent.example", token_file="/path/to/token") as');
    expect(wanted[2]).toContain('new Agent("https://agent.example", { tokenFile: "/path/to/token" });');
    expect(wanted[3]).toContain("Bearer $TOKEN");
    expect(snippets("http://agent.example/", "k", "e", true)[1]!.text).toContain("allow_plaintext_token=True");
  });
});

describe("failures", () => {
  test("of the agent are told from those of the network", () => {
    expect(failureOf(new ConnectError("x", Code.Unauthenticated)).trouble).toBe("unauthenticated");
    expect(failureOf(new ConnectError("x", Code.PermissionDenied)).trouble).toBe("forbidden");
    expect(failureOf(new ConnectError("x", Code.Unimplemented)).trouble).toBe("unimplemented");
    expect(failureOf(new ConnectError("x", Code.Unavailable)).trouble).toBe("unavailable");
    expect(failureOf(ConnectError.from(new TypeError("Failed to fetch"), Code.Internal)).trouble).toBe("unreachable");
    expect(failureOf(ConnectError.from("missing trailer", Code.Internal)).trouble).toBe("unreachable");
    expect(failureOf(new ConnectError("boom", Code.Internal)).trouble).toBe("failed");
  });
});

describe("nodes", () => {
  test("the quorum is told in words", () => {
    expect(quorumInWords({ quorum: true, needed: 2, voting: 3, survivable: 1, all: 3 })).toMatchObject({ tone: "good" });
    expect(quorumInWords({ quorum: true, needed: 2, voting: 3, survivable: 1, all: 3 }).text).toContain("1 more node may fail");
    expect(quorumInWords({ quorum: true, needed: 2, voting: 2, survivable: 0, all: 3 }).text).toContain("The next failure stops");
    expect(quorumInWords({ quorum: true, needed: 1, voting: 1, survivable: 0, all: 1 }).text).toContain("With one node");
    expect(quorumInWords({ quorum: false, needed: 2, voting: 1, survivable: 0, all: 3 })).toMatchObject({ tone: "bad" });
  });
  test("latency and memory have units", () => {
    expect([0, 250, 1_250, 31_000].map(latencyInWords)).toEqual(["–", "250 µs", "1.3 ms", "31 ms"]);
    expect([512, 2048, 5 * 1024 ** 3].map(bytesInWords)).toEqual(["512 B", "2.0 KiB", "5.0 GiB"]);
  });
});

describe("pods", () => {
  const pods = [pod("new-1", "new", 3, true, 1, 2), pod("old-1", "old", 2, true, 1, 2), pod("gone-1", "", 0, false, 0, 0)];
  test("are grouped by revision, the newest first", () => {
    expect(revisions(pods).map((revision) => revision.set?.name)).toEqual(["new", "old", undefined]);
  });
  test("tell how far the rollout has come", () => {
    expect(rollout(revisions(pods))).toEqual({ available: 1, desired: 2, older: 2, done: false });
    expect(rollout(revisions([pod("new-1", "new", 3, true, 1, 1)]))).toMatchObject({ done: true });
    expect(rollout([])).toBeUndefined();
  });
});
