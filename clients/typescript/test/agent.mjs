// A real agent for tests and benchmarks: its binary, in memory, on a free port.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/**
 * The agent's binary: ELECTION_AGENT_BINARY, or what cargo has built.
 *
 * @param {"debug" | "release"} profile
 */
export function binary(profile) {
  const built = fileURLToPath(new URL(`../../../target/${profile}/election-agent`, import.meta.url));
  return process.env["ELECTION_AGENT_BINARY"] ?? built;
}

/** @type {Set<import("node:child_process").ChildProcess>} */
const running = new Set();
// Whatever becomes of those who started them.
process.on("exit", () => running.forEach((child) => child.kill("SIGKILL")));

/**
 * Starts it. Resolves with the process, which is the caller's to end, and with where it listens.
 *
 * @param {string} binary
 * @param {Record<string, string>} settings
 * @returns {Promise<{ child: import("node:child_process").ChildProcess, address: string }>}
 */
export function startAgent(binary, settings) {
  const child = spawn(binary, [], {
    env: {
      EA_ENV: "development",
      EA_LOG_LEVEL: "info",
      EA_STORE: "memory",
      EA_KUBE_ENABLE: "false",
      EA_BIND_ADDRESS: "127.0.0.1",
      EA_HTTP_PORT: "0",
      EA_GRPC_PORT: "0",
      ...settings,
    },
    stdio: ["ignore", "ignore", "pipe"],
  });
  running.add(child);
  child.on("exit", () => running.delete(child));
  /** @type {string[]} */
  const log = [];
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      log.push(line);
      const found = / listening|"listening"/.test(line) ? /127\.0\.0\.1:\d+/.exec(line) : null;
      if (found !== null) resolve({ child, address: found[0] });
    });
    child.on("error", reject);
    child.on("exit", () => reject(new Error(`the agent has ended: ${log.join("\n")}`)));
  });
}
