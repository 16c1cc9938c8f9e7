// A real agent for the benchmarks: its binary, in memory, on a free port.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const built = fileURLToPath(new URL("../../../target/release/election-agent", import.meta.url));

/** Starts it; it ends with this process. Resolves with where it listens. */
export function startAgent(settings = {}) {
  const child = spawn(process.env["ELECTION_AGENT_BINARY"] ?? built, [], {
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
  process.on("exit", () => child.kill("SIGKILL"));
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      const found = line.includes("listening") ? /127\.0\.0\.1:\d+/.exec(line) : null;
      if (found !== null) resolve(found[0]);
    });
    child.on("error", reject);
    child.on("exit", () => reject(new Error("the agent has ended")));
  });
}
