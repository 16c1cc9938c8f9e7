// Measures the time from the end of a leader's work to the beginning of that of the next, which waits in another
// process's place: a client of its own.
import { Agent } from "@election-agent/client";
import { binary, startAgent } from "../test/agent.mjs";

const TURNS = Number(process.argv[2] ?? 300);
const GOAL = 60;
const { address } = await startAgent(binary("release"), {});
const clients = [new Agent(address), new Agent(address)];
const times = [];
let ended;

let turn = 0;
async function leads(client) {
  while (turn < TURNS) {
    let waiting;
    await client.lead("latency", async () => {
      if (ended !== undefined) times.push(performance.now() - ended);
      turn += 1;
      // Until the other waits.
      await new Promise((resolve) => setTimeout(resolve, 30));
      ended = performance.now();
    });
  }
}
await Promise.all(clients.map(leads));
times.sort((a, b) => a - b);
const at = (part) => times[Math.min(Math.floor(times.length * part), times.length - 1)].toFixed(1);
console.log(`${times.length} turns: p50 ${at(0.5)} ms, p90 ${at(0.9)} ms, p99 ${at(0.99)} ms, most ${at(1)} ms`);
process.exit(Number(at(0.99)) <= GOAL ? 0 : 1);
