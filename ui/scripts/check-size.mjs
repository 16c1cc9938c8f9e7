// Prints what a browser downloads, gzipped, and fails if it is more than the agent has room for.
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { gzipSync } from "node:zlib";

const LIMIT = 150 * 1024;
const dist = new URL("../dist", import.meta.url).pathname;

function* files(directory) {
  for (const name of readdirSync(directory).sort()) {
    const path = join(directory, name);
    if (statSync(path).isDirectory()) yield* files(path);
    else yield path;
  }
}

let total = 0;
for (const path of files(dist)) {
  const bytes = readFileSync(path);
  const size = gzipSync(bytes, { level: 9 }).length;
  total += size;
  console.log(`${String(size).padStart(8)} bytes gzipped (${bytes.length}) ${relative(dist, path)}`);
}
console.log(`${String(total).padStart(8)} bytes gzipped in all, of at most ${LIMIT}`);
if (total > LIMIT) {
  console.error("the dashboard is too large");
  process.exit(1);
}
