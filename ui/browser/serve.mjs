// Serves the built page as an agent does, and passes everything else on to an agent: a proxy with a path prefix, too.
//
//   node browser/serve.mjs --agent http://127.0.0.1:8080 [--port 0] [--prefix /some/prefix] [--cut 60000] [--bundle-only]
//
// Prints `LISTENING http://127.0.0.1:PORT/prefix/ui/`. With --cut, responses are cut after so many ms, as proxies with a
// time limit do. With --bundle-only there is no API: the page is from another origin than the agent that its
// `<meta name="election-agent-api">` then names.
import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import http from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

export const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const DIST = fileURLToPath(new URL("../dist", import.meta.url));
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

/** Starts a server; resolves to its address and what stops it. */
export function serve({ agent, port = 0, prefix = "", cut = 0, bundleOnly = false }) {
  const target = new URL(agent);
  const policy = bundleOnly ? POLICY.replace("connect-src 'self'", `connect-src ${target.origin}`) : POLICY;
  const file = (path, response) => {
    const name = normalize(path === "" ? "index.html" : path);
    const full = join(DIST, name);
    if (!full.startsWith(DIST) || !existsSync(full) || !statSync(full).isFile()) {
      response.writeHead(404).end("not found");
      return;
    }
    const headers = {
      "content-type": TYPES[extname(name)] ?? "application/octet-stream",
      "content-security-policy": policy,
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
      "cache-control": name === "index.html" ? "no-cache" : "public, max-age=31536000, immutable",
    };
    if (name === "index.html" && bundleOnly) {
      const html = readFileSync(full, "utf8");
      const replaced = html.replace('name="election-agent-api" content=""', `name="election-agent-api" content="${agent}"`);
      response.writeHead(200, headers).end(replaced);
      return;
    }
    response.writeHead(200, headers);
    createReadStream(full).pipe(response);
  };
  let stalled = false;
  const waiting = new Set();
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    if (!url.pathname.startsWith(`${prefix}/`)) {
      response.writeHead(404).end("not below the prefix");
      return;
    }
    const path = url.pathname.slice(prefix.length + 1);
    if (path.startsWith("ui/")) return file(path.slice(3), response);
    if (bundleOnly) return response.writeHead(404).end("no API here");
    const upstream = http.request(
      {
        host: target.hostname,
        port: target.port,
        method: request.method,
        path: `/${path}${url.search}`,
        headers: { ...request.headers, host: target.host },
      },
      (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        // A stream that stalls once never goes on: as one whose peer has long gone.
        answer.on("data", (chunk) => {
          if (stalled) waiting.add(response);
          if (!waiting.has(response)) response.write(chunk);
        });
        answer.on("end", () => waiting.has(response) || response.end());
        answer.on("error", () => response.destroy());
      },
    );
    upstream.on("error", () => (response.headersSent ? response.destroy() : response.writeHead(502).end("the agent is away")));
    response.on("close", () => upstream.destroy());
    request.pipe(upstream);
    if (cut > 0) setTimeout(() => response.destroy(), cut).unref();
  });
  return new Promise((resolve) => {
    server.listen(port, "127.0.0.1", () => {
      const origin = `http://127.0.0.1:${server.address().port}`;
      resolve({
        origin,
        url: `${origin}${prefix}/ui/`,
        /** From now on nothing comes through, and connections stay open. */
        stall() {
          stalled = true;
        },
        /** New requests are answered again. */
        resume() {
          stalled = false;
        },
        stop() {
          server.close();
          server.closeAllConnections();
        },
      });
    });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const option = (name, other) => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? other : process.argv[at + 1];
  };
  const started = await serve({
    agent: option("agent", "http://127.0.0.1:8080"),
    port: Number(option("port", "0")),
    prefix: option("prefix", ""),
    cut: Number(option("cut", "0")),
    bundleOnly: process.argv.includes("--bundle-only"),
  });
  console.log(`LISTENING ${started.url}`);
}
