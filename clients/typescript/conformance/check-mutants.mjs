// Plays the scenarios that have to find the mutants, and fails for those that are not found.
//
//   SUITE: the built suite, such as target/debug/deps/suite-…
//   ELECTION_AGENT_BINARY: the agent
//
// Names of mutants as arguments: only those.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { MUTANTS } from "./mutants.mjs";

const AT_ONCE = 4;
const suite = process.env["SUITE"];
if (suite === undefined) {
  console.error("SUITE names the suite's program: cargo test -p client-conformance --test suite --no-run tells it");
  process.exit(2);
}
const program = fileURLToPath(new URL("conformance.mjs", import.meta.url));
const cwd = fileURLToPath(new URL("../../conformance/", import.meta.url));
const wanted = process.argv.slice(2);

function play(mutant, scenario) {
  return new Promise((resolve) => {
    const programs = `${mutant}=${process.execPath} ${program} --mutant ${mutant}`;
    const child = spawn(suite, ["--exact", `${mutant}::${scenario}`], {
      cwd,
      env: { ...process.env, CONFORMANCE_PROGRAMS: programs },
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output += data));
    child.on("close", () => resolve(output));
  });
}

const trials = Object.entries(MUTANTS).flatMap(([mutant, { found }]) =>
  found.map(([scenario, check]) => ({ mutant, scenario, check })),
);
const queue = trials.filter(({ mutant }) => wanted.length === 0 || wanted.includes(mutant));
let missed = 0;
async function work() {
  for (let trial = queue.shift(); trial !== undefined; trial = queue.shift()) {
    const { mutant, scenario, check } = trial;
    const output = await play(mutant, scenario);
    const found = output.includes("1 failed") && output.includes(`check: "${check}"`);
    console.log(`${found ? "found" : "MISSED"} ${mutant}: ${scenario}/${check}`);
    if (!found) {
      missed += 1;
      console.log(output);
    }
  }
}
await Promise.all(Array.from({ length: AT_ONCE }, work));
process.exit(missed === 0 ? 0 : 1);
