// Runs scenarios in a browser against a running agent, and prints TAP: `node browser/run.mjs pages live …`.
//
// harness.mjs lists the variables that say where the agent is. Scenarios with faults print `READY fault` and wait for a line
// on stdin, which says that the fault was made.
import { closeInput, env, launch } from "./harness.mjs";
import { scenarios } from "./scenarios.mjs";

const names = process.argv.slice(2);
const unknown = names.filter((name) => !(name in scenarios));
if (names.length === 0 || unknown.length > 0) {
  if (unknown.length > 0) console.error(`there is no scenario ${unknown.join(", ")}`);
  console.error(`usage: node browser/run.mjs SCENARIO…\nscenarios: ${Object.keys(scenarios).join(" ")}`);
  process.exit(2);
}

console.log("TAP version 13");
console.log(`1..${names.length}`);
console.log(`# ${env.url}`);
const browser = await launch();
let failed = 0;
for (const [index, name] of names.entries()) {
  const started = Date.now();
  try {
    await scenarios[name](browser);
    console.log(`ok ${index + 1} - ${name} # ${Date.now() - started} ms`);
  } catch (error) {
    failed += 1;
    console.log(`not ok ${index + 1} - ${name}`);
    const text = String(error?.stack ?? error);
    console.log(text.split("\n").map((line) => `  # ${line}`).join("\n"));
  }
}
await browser.close();
closeInput();
process.exit(failed === 0 ? 0 : 1);
