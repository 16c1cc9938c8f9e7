import type { Node, Nodes } from "@election-agent/client/proto";
import { usePoll } from "../live/hooks";
import { Trouble } from "../parts/notices";
import { Name, visible } from "../parts/text";
import { Time, duration } from "../parts/time";
import { plural } from "../parts/words";

/** What the nodes' state means, in words. */
export function quorumInWords(nodes: Pick<Nodes, "needed" | "voting" | "survivable" | "quorum"> & { all: number }): {
  tone: "good" | "bad" | "warning";
  text: string;
} {
  const { needed, voting, survivable, quorum, all } = nodes;
  const vote = `${voting} of ${plural(all, "node")} can vote, and ${needed} must agree.`;
  if (!quorum) {
    // While agents move to another list of nodes, each list needs a quorum of its own.
    const missing = voting < needed ? plural(needed - voting, "more node") : "more nodes of the other list";
    return {
      tone: "bad",
      text: `No quorum: ${vote} No election can be decided until ${missing} can vote. Leaders keep what is left of their terms.`,
    };
  }
  if (survivable <= 0) {
    const why = all === 1 ? "With one node, its failure stops all elections." : "The next failure stops all elections.";
    return { tone: "warning", text: `There is a quorum, but none to spare: ${vote} ${why}` };
  }
  return {
    tone: "good",
    text: `There is a quorum: ${vote} ${plural(survivable, "more node")} may fail, and elections are still decided.`,
  };
}

export function latencyInWords(microseconds: number): string {
  if (microseconds <= 0) return "–";
  return microseconds < 1_000 ? `${microseconds} µs` : `${(microseconds / 1_000).toFixed(microseconds < 10_000 ? 1 : 0)} ms`;
}

export function bytesInWords(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`;
}

export function NodesPage() {
  const nodes = usePoll((api, signal) => api.agent.listNodes({}, { signal }), 2_000, []);
  const value = nodes.value;
  const words = value === undefined ? undefined : quorumInWords({ ...value, all: value.nodes.length });
  return (
    <section class="page" aria-labelledby="title">
      <div class="bar">
        <h1 id="title" tabIndex={-1}>
          Lease nodes
        </h1>
        {value !== undefined && (
          <span class="summary">
            last health check <Time at={nodes.at - Number(value.checked)} />
          </span>
        )}
      </div>
      <div class="notices" role="status">
        {nodes.failure !== undefined && <Trouble failure={nodes.failure} what="The state of the nodes" />}
        {words !== undefined && (
          <div class={`notice ${words.tone === "good" ? "good" : words.tone === "bad" ? "error" : "warning"}`}>{words.text}</div>
        )}
      </div>
      {value === undefined && nodes.failure === undefined && <p>Asking the agent…</p>}
      {value !== undefined && (
        <div class={`cards${nodes.failure === undefined ? "" : " unsure"}`}>
          {value.nodes.map((node) => (
            <NodeCard key={node.name} node={node} />
          ))}
        </div>
      )}
    </section>
  );
}

function NodeCard({ node }: { node: Node }) {
  const used = Number(node.memoryUsed);
  const limit = Number(node.memoryLimit);
  const quarantine = Number(node.quarantine);
  return (
    <section class="card" aria-label={visible(node.name)}>
      <h2>
        <Name text={node.name} />{" "}
        <span class={`badge ${node.voting ? "good" : "bad"}`}>{node.voting ? "votes" : node.up ? "does not vote" : "down"}</span>
      </h2>
      <dl>
        <dt>Answers</dt>
        <dd>{node.up ? "yes" : "no"}</dd>
        <dt>Role</dt>
        <dd>{node.role}</dd>
        <dt>Latency</dt>
        <dd>{latencyInWords(Number(node.latency))}</dd>
        <dt>Quarantine</dt>
        <dd>{quarantine > 0 ? `grants nothing for another ${duration(quarantine)}: it may have forgotten leaders` : "none"}</dd>
        {node.unfit !== "" && (
          <>
            <dt>{node.up ? "Why it must not vote" : "Why it does not answer"}</dt>
            <dd class="bad-text">{visible(node.unfit)}</dd>
          </>
        )}
        {node.degraded !== "" && (
          <>
            <dt>Needs care</dt>
            <dd class="bad-text">{visible(node.degraded)}</dd>
          </>
        )}
        {used > 0 && (
          <>
            <dt>Memory</dt>
            <dd>{limit > 0 ? `${bytesInWords(used)} of ${bytesInWords(limit)}` : bytesInWords(used)}</dd>
          </>
        )}
      </dl>
    </section>
  );
}
