// Bundles a page that only observes, and fails if it holds what Node.js needs, or what leads. Prints its size.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "vite";

const web = fileURLToPath(new URL("../dist/web.js", import.meta.url));

/** What only leading, or only Node.js, has. */
const FOREIGN = ["connect-node", "node:", "http2", "jeopardy:", "lapsing", "alive()", "/proc/uptime", "opentelemetry"];

/** @returns the bundle's text, not minified, and its size in bytes, minified and gzipped */
export async function bundle() {
  const directory = mkdtempSync(join(tmpdir(), "election-agent-bundle-"));
  try {
    const entry = join(directory, "page.js");
    writeFileSync(
      entry,
      `import { Agent } from ${JSON.stringify(web)};
      for await (const state of new Agent("/").observe("nightly")) document.title = state.leader?.name ?? "nobody";`,
    );
    const text = async (minify) => {
      const { output } = await build({
        configFile: false,
        logLevel: "error",
        build: { write: false, minify, target: "es2022", rollupOptions: { input: entry } },
      });
      return output.map((chunk) => chunk.code ?? "").join("\n");
    };
    return { text: await text(false), size: gzipSync(await text(true)).length };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** @returns what does not belong there */
export function foreign(text) {
  return FOREIGN.filter((word) => text.includes(word));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { text, size } = await bundle();
  const found = foreign(text);
  console.log(`a page that observes: ${size} bytes, minified and gzipped`);
  if (found.length > 0) console.error(`it holds ${found.join(", ")}`);
  process.exit(found.length === 0 ? 0 : 1);
}
