import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import type { Plugin } from "vite";

const clients = fileURLToPath(new URL("../clients/typescript", import.meta.url));

// `npm run dev` serves the page from Vite's origin: AGENT_URL names the agent, whose EA_CORS_ORIGINS must list that origin.
function agentOfDevServer(): Plugin {
  const agent = process.env["AGENT_URL"] ?? "http://localhost:8080";
  return {
    name: "agent-of-dev-server",
    apply: "serve",
    transformIndexHtml: (html) =>
      html.replace('name="election-agent-api" content=""', `name="election-agent-api" content="${agent}"`),
  };
}

export default defineConfig({
  // Relative, so that the page works behind any path prefix.
  base: "./",
  plugins: [agentOfDevServer()],
  resolve: {
    // The package's sources, with the dashboard's own copy of what they need.
    alias: [{ find: /^@election-agent\/client\/(\w+)$/, replacement: `${clients}/src/$1.ts` }],
    dedupe: ["@bufbuild/protobuf", "@connectrpc/connect", "@connectrpc/connect-web"],
  },
  server: { fs: { allow: [".", clients] } },
  build: {
    // Two years old and newer; the first with :dir() and all that the style sheet uses.
    target: ["chrome120", "firefox121", "safari17"],
    // The policy `default-src 'none'` allows no data: URLs but for images, and hashed names can be cached for ever.
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
  },
  test: {
    environment: "happy-dom",
    include: ["test/**/*.test.{ts,tsx}"],
  },
});
