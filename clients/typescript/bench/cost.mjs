// Measures what it costs a process to lead 1,000 elections, which it does by one stream.
import { Agent } from "@election-agent/client";
import { binary, startAgent } from "../test/agent.mjs";

const ELECTIONS = Number(process.argv[2] ?? 1_000);
const SECONDS = Number(process.argv[3] ?? 30);
const GOAL = 3;
const { address } = await startAgent(binary("release"), { EA_MAX_IN_FLIGHT: "2000" });
const agent = new Agent(address, { candidate: "bench" });
const began = performance.now();
const terms = await Promise.all(Array.from({ length: ELECTIONS }, (_, number) => agent.acquire(`cost-${number}`)));
console.log(`${ELECTIONS} elections won in ${Math.round(performance.now() - began)} ms`);
const streams = agent.context.streams.streams.filter(({ over }) => !over);
// What joining has left behind.
await new Promise((resolve) => setTimeout(resolve, 6_000));
const before = { cpu: process.cpuUsage(), at: performance.now(), until: terms.map(({ validUntil }) => validUntil) };
await new Promise((resolve) => setTimeout(resolve, SECONDS * 1_000));
const { user, system } = process.cpuUsage(before.cpu);
const part = ((user + system) / 1_000 / (performance.now() - before.at)) * 100;
const extended = terms.filter((term, index) => term.lost === undefined && term.validUntil > before.until[index]).length;
const memory = Math.round(process.memoryUsage().rss / 1024 / 1024);
console.log(`${extended} extended by ${streams.length} stream(s): ${part.toFixed(2)} % of a core, ${memory} MiB resident`);
process.exit(part <= GOAL && extended === ELECTIONS && streams.length === 1 ? 0 : 1);
