import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  resolve: {
    alias: [
      { find: "@election-agent/client/web", replacement: at("src/web.ts") },
      { find: "@election-agent/client", replacement: at("src/index.ts") },
    ],
  },
  test: {
    include: ["test/**/*.test.ts"],
    // What waits for agents waits for no shorter time: a busy machine is no failure.
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
