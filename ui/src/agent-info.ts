import { effect, signal } from "@preact/signals";
import { session, theApi } from "./api/client";
import { failureOf } from "./api/errors";
import type { AgentState } from "@election-agent/client/proto";

/** What the agent says of itself; undefined if it does not, or not yet. */
export const agentInfo = signal<AgentState | undefined>(undefined);

/** The agent does not have the call: it is older than this page. */
export const agentIsOlder = signal(false);

/** Asks the agent who it is now, and whenever the token changes. */
export function followAgentInfo(): void {
  effect(() => {
    void session.value;
    void readAgentInfo();
  });
}

export async function readAgentInfo(): Promise<void> {
  try {
    agentInfo.value = await theApi().agent.getAgent({});
    agentIsOlder.value = false;
  } catch (error) {
    // The page works without: what it needs most it asks for itself.
    agentInfo.value = undefined;
    agentIsOlder.value = failureOf(error).trouble === "unimplemented";
  }
}
