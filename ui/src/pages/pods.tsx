import { useEffect, useState } from "preact/hooks";
import { agentInfo } from "../agent-info";
import type { Pod, ReplicaSet } from "@election-agent/client/proto";
import { usePoll } from "../live/hooks";
import { Trouble } from "../parts/notices";
import { Name } from "../parts/text";
import { duration } from "../parts/time";
import { plural } from "../parts/words";
import { type Route, goTo } from "../route";

export interface Revision {
  set: ReplicaSet | undefined;
  pods: Pod[];
}

/** Groups pods by ReplicaSet, the newest revision first. */
export function revisions(pods: readonly Pod[]): Revision[] {
  const byName = new Map<string, Revision>();
  for (const pod of pods) {
    const name = pod.replicaSet?.name ?? "";
    const revision = byName.get(name);
    if (revision === undefined) byName.set(name, { set: name === "" ? undefined : pod.replicaSet, pods: [pod] });
    else revision.pods.push(pod);
  }
  return [...byName.values()].sort((a, b) => (b.set?.revision ?? 0) - (a.set?.revision ?? 0));
}

/** How far a rollout has come: the newest revision's available pods of those wanted. */
export function rollout(all: readonly Revision[]): { available: number; desired: number; older: number; done: boolean } | undefined {
  const newest = all[0]?.set;
  if (newest === undefined) return undefined;
  const older = all.slice(1).reduce((sum, revision) => sum + revision.pods.length, 0);
  const available = newest.availableReplicas;
  const desired = newest.desiredReplicas;
  return { available, desired, older, done: available >= desired && older === 0 };
}

type Place = Extract<Route, { page: "pods" }>;

export function PodsPage({ place }: { place: Place }) {
  const [namespace, setNamespace] = useState(place.namespace);
  const [deployment, setDeployment] = useState(place.deployment);
  useEffect(() => {
    setNamespace(place.namespace);
    setDeployment(place.deployment);
  }, [place.namespace, place.deployment]);
  const chosen = place.namespace !== "" && place.deployment !== "";
  const pods = usePoll(
    chosen
      ? async (api, signal) => {
          let age: string | null = null;
          const answer = await api.election.getPods(
            { namespace: place.namespace, deployment: place.deployment },
            {
              signal,
              onHeader: (header) => (age = header.get("x-election-agent-cache-age") ?? age),
              onTrailer: (trailer) => (age = trailer.get("x-election-agent-cache-age") ?? age),
            },
          );
          return { items: answer.items, age: age === null || age === "" ? undefined : Number(age) };
        }
      : undefined,
    3_000,
    [place.namespace, place.deployment],
  );
  const all = revisions(pods.value?.items ?? []);
  const progress = rollout(all);
  return (
    <section class="page" aria-labelledby="title">
      <div class="bar">
        <h1 id="title" tabIndex={-1}>
          Pods
        </h1>
        {pods.value?.age !== undefined && Number.isFinite(pods.value.age) && (
          <span class="summary">at most {duration(pods.value.age)} old when asked</span>
        )}
        <form
          class="filters"
          onSubmit={(event) => {
            event.preventDefault();
            goTo({ page: "pods", namespace: namespace.trim(), deployment: deployment.trim() });
          }}
        >
          <label>
            Namespace
            <input type="text" value={namespace} required maxLength={63} autoComplete="off" spellcheck={false} onInput={(event) => setNamespace(event.currentTarget.value)} />
          </label>
          <label>
            Deployment
            <input type="text" value={deployment} required maxLength={253} autoComplete="off" spellcheck={false} onInput={(event) => setDeployment(event.currentTarget.value)} />
          </label>
          <button type="submit">Show</button>
        </form>
      </div>
      <div class="notices" role="status">
        {agentInfo.value?.pods === false && !chosen && (
          <div class="notice info">This agent does not look up pods: it has found no Kubernetes, or it is switched off.</div>
        )}
        {pods.failure !== undefined && <Trouble failure={pods.failure} what="The pods" />}
      </div>
      {!chosen && <p class="faint">Name a Deployment: its pods are shown by revision, the newest first.</p>}
      {chosen && pods.value === undefined && pods.failure === undefined && <p>Asking the agent…</p>}
      {pods.value?.items.length === 0 && <p>The Deployment has no pods.</p>}
      {progress !== undefined && (
        <div class="card">
          <h2>Rollout</h2>
          <p>
            {progress.done ? "Done: " : "In progress: "}
            {progress.available} of {plural(progress.desired, "pod")} of the newest revision available
            {progress.older > 0 ? `, ${plural(progress.older, "pod")} of older revisions left` : ""}.
          </p>
          <progress value={Math.min(progress.available, progress.desired)} max={Math.max(1, progress.desired)} aria-label="Rollout" />
        </div>
      )}
      {all.map((revision) => (
        <RevisionCard key={revision.set?.name ?? ""} revision={revision} />
      ))}
    </section>
  );
}

function RevisionCard({ revision }: { revision: Revision }) {
  const { set, pods } = revision;
  return (
    <section class="card">
      <h2>
        {set === undefined ? (
          "Their ReplicaSet has gone"
        ) : (
          <>
            Revision {set.revision} <span class="faint"><Name text={set.name} /></span>
          </>
        )}
      </h2>
      {set !== undefined && (
        <p class="faint">
          {set.readyReplicas} of {set.replicas} ready, {set.availableReplicas} available, {set.desiredReplicas} wanted
        </p>
      )}
      <div class="scroll-x" tabIndex={0} role="region" aria-label={`Pods of ${set === undefined ? "no ReplicaSet" : `revision ${set.revision}`}`}>
        <table>
          <thead>
            <tr>
              <th scope="col">Pod</th>
              <th scope="col">Phase</th>
              <th scope="col">Ready</th>
              <th scope="col">Address</th>
            </tr>
          </thead>
          <tbody>
            {pods.map((pod) => (
              <tr key={pod.name}>
                <td>
                  <Name text={pod.name} />
                </td>
                <td>
                  {pod.status?.phase ?? "Unknown"}
                  {pod.status?.terminating === true && <> <span class="badge quiet">terminating</span></>}
                  {(pod.status?.reason ?? "") !== "" && <> (<Name text={pod.status?.reason ?? ""} />)</>}
                </td>
                <td>
                  <span class={`badge ${pod.status?.podReady ? "good" : "bad"}`}>{pod.status?.podReady ? "ready" : "not ready"}</span>
                </td>
                <td>{pod.ip === "" ? "–" : <Name text={pod.ip} />}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
