import { useEffect, useState } from "preact/hooks";
import { theApi } from "../api/client";
import { type Failure, failureOf } from "../api/errors";
import { agentInfo } from "../agent-info";
import { type Row, keyOf } from "../live/elections";
import { useLive, usePoll, useTerms } from "../live/hooks";
import { type Entry, entryOf, merged } from "../live/log";
import { Copyable } from "../parts/copy";
import { Dialog } from "../parts/dialog";
import { LinkBadge, LiveNotices, Trouble } from "../parts/notices";
import { Name, Value } from "../parts/text";
import { Time, TimeLeft, duration } from "../parts/time";
import { change, plural, refusal, vacancy } from "../parts/words";
import { snippets } from "../snippets";

const MOST_SEEN = 500;

export function ElectionPage({ kind, election }: { kind: string; election: string }) {
  const [seen, setSeen] = useState<Entry[]>([]);
  useEffect(() => setSeen([]), [kind, election]);
  const add = (entry: Entry) =>
    setSeen((before) => [entry, ...before.filter((other) => other.id !== entry.id)].slice(0, MOST_SEEN));
  const live = useLive(
    { kind, election },
    {
      leaveWhenHidden: false,
      heard: ({ state, at, changed }) => {
        if (changed) {
          add(entryOf(state, at, false));
          changes.again();
        }
      },
    },
  );
  const changes = usePoll(
    async (api, signal) => (await api.election.listChanges({ kind, election }, { signal })).changes,
    30_000,
    [kind, election],
  );
  const waiters = usePoll(
    async (api, signal) => (await api.election.listWaiters({ kind, election, pageSize: 1000 }, { signal })).waiters,
    3_000,
    [kind, election],
  );
  useEffect(() => {
    if (live.gap !== undefined) add({ what: "gap", id: `gap ${live.gap.from}`, from: live.gap.from, at: live.gap.to });
  }, [live.gap]);

  const row = live.elections.rows.get(keyOf(kind, election));
  useTerms(live, () => (row === undefined ? [] : [row]));

  const unsure = live.doubt !== undefined || live.link.state === "lost" || live.link.state === "refused";
  const info = agentInfo.value;
  return (
    <section class="page" aria-labelledby="title">
      <p class="crumbs">
        <a href="#/elections">Elections</a> / <a href={`#/elections?kind=${encodeURIComponent(kind)}`}><Name text={kind} /></a> /
      </p>
      <div class="bar">
        <h1 id="title" tabIndex={-1}>
          <Name text={election} />
        </h1>
        <LinkBadge live={live} />
      </div>
      <LiveNotices live={live} />
      <div class={`cards${unsure ? " unsure" : ""}`}>
        <section class="card" aria-labelledby="state-title">
          <h2 id="state-title">State</h2>
          <Present row={row} asking={live.link.state === "connecting"} />
          <Actions kind={kind} election={election} row={row} />
        </section>
        <section class="card" aria-labelledby="waiters-title">
          <h2 id="waiters-title">Who waits</h2>
          {waiters.failure !== undefined && <Trouble failure={waiters.failure} />}
          {waiters.value !== undefined &&
            (waiters.value.length === 0 ? (
              <p class="faint">No campaign waits through this agent.</p>
            ) : (
              <>
                <p>{plural(waiters.value.length, "campaign waits", "campaigns wait")} through this agent, in this order:</p>
                <ol class="waiters-list">
                  {waiters.value.slice(0, 100).map((waiter, index) => (
                    <li key={index}>
                      <Name text={waiter.candidate} /> <span class="faint">for {duration(Number(waiter.waitingFor))}</span>
                    </li>
                  ))}
                </ol>
                {waiters.value.length > 100 && <p class="faint">… and {plural(waiters.value.length - 100, "other")}.</p>}
              </>
            ))}
        </section>
      </div>
      <section class="card" aria-labelledby="changes-title">
        <h2 id="changes-title">Changes</h2>
        <p class="faint">
          Seen while this page was open, and those that the agent remembers: it remembers what it watched for somebody.
        </p>
        {changes.failure !== undefined && <Trouble failure={changes.failure} what="What the agent remembers" />}
        <Log entries={merged(seen, changes.value ?? [])} />
      </section>
      <section class="card" aria-labelledby="lead-title">
        <h2 id="lead-title">How to lead it</h2>
        {snippets(theApi().base, kind, election, info?.authentication ?? false).map((snippet) => (
          <Copyable key={snippet.title} {...snippet} />
        ))}
      </section>
    </section>
  );
}

function Present({ row, asking }: { row: Row | undefined; asking: boolean }) {
  if (row === undefined) return <p>{asking ? "Asking the agent…" : "Vacant: nobody leads."}</p>;
  if (!row.held) {
    return (
      <>
        <p>
          <span class="badge quiet">vacant</span> {vacancy(row.cause, row.leader)} {row.leader !== "" && <Name text={row.leader} />}
        </p>
        <dl>
          <dt>Vacant since</dt>
          <dd>{row.changedAt > 0 ? <Time at={row.changedAt} /> : "before this page was opened"}</dd>
          <dt>Highest token</dt>
          <dd class="token">{row.token === 0 ? "none is known" : row.token}</dd>
        </dl>
      </>
    );
  }
  return (
    <dl>
      <dt>Leader</dt>
      <dd>
        <Name text={row.leader} />
      </dd>
      <dt>Value</dt>
      <dd>
        <Value text={row.value} />
      </dd>
      <dt>Fencing token</dt>
      <dd class="token">{row.token}</dd>
      <dt>Elected at</dt>
      <dd>
        <Time at={row.electedAt} />
      </dd>
      <dt>Time left</dt>
      <dd>
        <TimeLeft until={row.until} full={row.full} />
      </dd>
    </dl>
  );
}

function Log({ entries }: { entries: Entry[] }) {
  if (entries.length === 0) return <p>No change yet.</p>;
  return (
    <div class="scroll-x" tabIndex={0} role="region" aria-label="Changes, the newest first">
      <table class="log">
        <thead>
          <tr>
            <th scope="col">When</th>
            <th scope="col">What</th>
            <th scope="col">Token</th>
          </tr>
        </thead>
        <tbody>
          {entries.map((entry) =>
            entry.what === "gap" ? (
              <tr key={entry.id} class="gap-row">
                <td>
                  <Time at={entry.from} />
                </td>
                <td colSpan={2}>not connected for {duration(entry.at - entry.from)}: what happened then is not known</td>
              </tr>
            ) : (
              <tr key={entry.id}>
                <td>
                  <Time at={entry.at} />
                </td>
                <td>
                  {entry.missed && <span class="missed">gap: others may have led before</span>}{" "}
                  {change(entry.held, entry.cause)} {entry.held && <Name text={entry.leader} />}
                </td>
                <td class="token">{entry.token === 0 ? "–" : entry.token}</td>
              </tr>
            ),
          )}
        </tbody>
      </table>
    </div>
  );
}

/** Resign and hand over: for those who may, and about the token that they see. */
function Actions({ kind, election, row }: { kind: string; election: string; row: Row | undefined }) {
  const [asked, setAsked] = useState<"resign" | "handover" | undefined>();
  const [said, setSaid] = useState("");
  const leader = row?.held ? row.leader : "";
  const permissions = usePoll(
    row?.held
      ? async (api, signal) => (await api.agent.listPermissions({ kind, election, candidate: leader }, { signal })).actions
      : undefined,
    60_000,
    [kind, election, leader],
  );
  // The question is about one term: when it is over, there is nothing to ask any more.
  useEffect(() => setAsked(undefined), [row?.token, row?.held]);
  useEffect(() => setSaid(""), [row?.token]);
  const may = (action: string) => row?.held === true && (permissions.value ?? []).includes(action);
  const done = (text: string) => {
    setAsked(undefined);
    setSaid(text);
  };
  return (
    <div class="actions">
      {may("resign") && (
        <button type="button" class="danger" onClick={() => setAsked("resign")}>
          Resign…
        </button>
      )}
      {may("handover") && (
        <button type="button" onClick={() => setAsked("handover")}>
          Hand over…
        </button>
      )}
      {row?.held && permissions.value !== undefined && !may("resign") && !may("handover") && (
        <span class="faint">You are not permitted to end or hand over this leadership.</span>
      )}
      {row?.held && permissions.failure?.trouble === "unimplemented" && (
        <span class="faint">This agent does not tell what you may do: use eactl to resign or hand over.</span>
      )}
      <span role="status">{said}</span>
      {asked === "resign" && row?.held && <Resign row={row} onClose={() => setAsked(undefined)} onDone={done} />}
      {asked === "handover" && row?.held && <HandOver row={row} onClose={() => setAsked(undefined)} onDone={done} />}
    </div>
  );
}

interface QuestionProps {
  row: Row;
  onClose: () => void;
  onDone: (text: string) => void;
}

/** Asks for an action on a term, once. */
function useAction(act: () => Promise<{ value: boolean; reason: string }>, success: string, onDone: (text: string) => void) {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Failure | undefined>();
  const run = async () => {
    setBusy(true);
    setFailure(undefined);
    try {
      const answer = await act();
      onDone(answer.value ? success : refusal(answer.reason));
    } catch (error) {
      setFailure(failureOf(error));
      setBusy(false);
    }
  };
  return { busy, failure, run };
}

function Unknown({ failure }: { failure: Failure | undefined }) {
  if (failure === undefined) return null;
  const nothing = ["unauthenticated", "forbidden", "unimplemented", "invalid", "exhausted"].includes(failure.trouble);
  return (
    <div role="alert">
      <Trouble failure={failure} what={nothing ? "Nothing was changed" : "It is not known whether it was done"} />
    </div>
  );
}

function Resign({ row, onClose, onDone }: QuestionProps) {
  const { busy, failure, run } = useAction(
    () =>
      theApi().election.resign({ kind: row.kind, election: row.election, leader: row.leader, token: BigInt(row.token) }),
    "Resigned.",
    onDone,
  );
  return (
    <Dialog title="Resign?" onClose={onClose}>
      <p>
        This ends the term of <Name text={row.leader} /> (token {row.token}). The election <Name text={row.election} /> is
        vacant at once, and another candidate may be elected.
      </p>
      <p>
        <strong>The leader's work must have ended.</strong> The leader is not told, and learns of it when it extends its term.
        Until then only storage that compares tokens keeps it from harm.
      </p>
      <Unknown failure={failure} />
      <div class="buttons">
        <button type="button" autofocus onClick={onClose}>
          Cancel
        </button>
        <button type="button" class="danger" disabled={busy} onClick={() => void run()}>
          Resign
        </button>
      </div>
    </Dialog>
  );
}

function HandOver({ row, onClose, onDone }: QuestionProps) {
  const [to, setTo] = useState("");
  const [seconds, setSeconds] = useState(String(Math.max(1, Math.round(row.full / 1000))));
  const term = Math.round(Number(seconds) * 1000);
  const valid = to !== "" && Number.isFinite(term) && term >= 1000;
  const { busy, failure, run } = useAction(
    () =>
      theApi().election.handover({
        kind: row.kind,
        election: row.election,
        leader: to,
        term,
        currentLeader: row.leader,
        token: BigInt(row.token),
      }),
    "Handed over.",
    onDone,
  );
  return (
    <Dialog title="Hand over?" onClose={onClose}>
      <p>
        This ends the term of <Name text={row.leader} /> (token {row.token}) and makes another candidate the leader of{" "}
        <Name text={row.election} />, with a new token. The new leader takes its leadership up by campaigning.
      </p>
      <p>
        <strong>The leader's work must have ended.</strong> Neither is told.
      </p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (valid && !busy) void run();
        }}
      >
        <label>
          New leader
          <input type="text" value={to} maxLength={256} required autofocus autoComplete="off" dir="auto" spellcheck={false} onInput={(event) => setTo(event.currentTarget.value)} />
        </label>
        <label>
          Term, in seconds
          <input type="number" min="1" step="any" value={seconds} required onInput={(event) => setSeconds(event.currentTarget.value)} />
        </label>
        <Unknown failure={failure} />
        <div class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="danger" disabled={busy || !valid}>
            Hand over
          </button>
        </div>
      </form>
    </Dialog>
  );
}
