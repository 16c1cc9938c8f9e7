// What scenarios have in common: a browser, an agent's REST API to make elections with, and checks that hold for every page.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const require = createRequire(import.meta.url);
const AXE = require.resolve("axe-core/axe.min.js");

export const env = {
  /** The page, such as http://127.0.0.1:8080/ui/. */
  url: process.env.UI_URL ?? "http://127.0.0.1:8080/ui/",
  /** The REST API that elections are made with; the page's own unless set. */
  api: process.env.UI_API ?? (process.env.UI_URL ?? "http://127.0.0.1:8080/ui/").replace(/ui\/$/, ""),
  /** A bearer token, for agents with authentication. */
  token: process.env.UI_TOKEN ?? "",
  /** A bearer token that policies permit less. */
  weakToken: process.env.UI_WEAK_TOKEN ?? "",
  /** The port of the page of another origin: EA_CORS_ORIGINS=http://127.0.0.1:PORT. */
  crossPort: Number(process.env.UI_CROSS_PORT ?? "0"),
  /** Where screenshots go; none are made without it. */
  screenshots: process.env.UI_SCREENSHOTS ?? "",
  /** A file that gets the one screenshot of the documentation. */
  picture: process.env.UI_PICTURE ?? "",
  /** How many elections the scenario `many` makes, and for how long they last, in ms. */
  elections: Number(process.env.UI_ELECTIONS ?? "10000"),
  term: Number(process.env.UI_TERM ?? "60000"),
  /** How long the scenario `measure` watches, in seconds. */
  seconds: Number(process.env.UI_SECONDS ?? "60"),
};

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
  "--js-flags=--expose-gc",
];

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

export function launch() {
  return chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
}

/**
 * When a page that a person opens in a new browser has drawn its first row, in ms after the navigation began. Nothing
 * is attached to the browser meanwhile: what drives pages instruments their scripts, and slows them down.
 */
export async function firstRow(fragment) {
  const profile = mkdtempSync(join(tmpdir(), "first-row-"));
  const child = spawn(CHROMIUM, [...FLAGS, "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  try {
    const port = await new Promise((resolve, reject) => {
      let told = "";
      child.once("exit", () => reject(new Error(`the browser has ended: ${told}`)));
      child.stderr.on("data", (text) => {
        told += text;
        const found = /ws:\/\/127\.0\.0\.1:(\d+)\//.exec(told);
        if (found) resolve(found[1]);
      });
    });
    const devtools = `http://127.0.0.1:${port}`;
    // What a browser does when it starts is not the page's.
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    await fetch(`${devtools}/json/new?${encodeURIComponent(env.url + fragment)}`, { method: "PUT" });
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const browser = await chromium.connectOverCDP(devtools);
    const pages = browser.contexts().flatMap((context) => context.pages());
    const page = pages.find((page) => page.url().startsWith(env.url));
    await page.locator("[role=row][data-row]").first().waitFor();
    const first = await page.evaluate(() => performance.getEntriesByName("first-row")[0].startTime);
    // With all its processes: killed, it would leave some that write to the profile.
    await (await browser.newBrowserCDPSession()).send("Browser.close");
    return first;
  } finally {
    const timer = setTimeout(() => child.kill("SIGKILL"), 5_000);
    await exited;
    clearTimeout(timer);
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 200 });
  }
}

// Closes what is idle before the agent does: a request on a connection that is being closed gets no reply.
const agentOfNode = new http.Agent({ keepAlive: true, maxSockets: 16, timeout: 5_000 });

/** Asks the agent over REST. */
export function rest(method, path, body, token = env.token) {
  const url = new URL(path, env.api);
  const headers = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (token !== "") headers.authorization = `Bearer ${token}`;
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers, agent: agentOfNode }, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        if (response.statusCode >= 400) reject(new Error(`${method} ${path}: ${response.statusCode} ${text}`));
        else resolve(text === "" ? undefined : JSON.parse(text));
      });
    });
    request.on("error", reject);
    request.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

const path = (kind, election) => `election/${encodeURIComponent(kind)}/${encodeURIComponent(election)}`;

export const campaign = (kind, election, candidate, more = {}) =>
  rest("POST", path(kind, election), { candidate, term: env.term, ...more });
export const extend = (kind, election, leader, term = env.term) => rest("PATCH", path(kind, election), { leader, term });
export const resign = (kind, election, leader) => rest("DELETE", `${path(kind, election)}?leader=${encodeURIComponent(leader)}`);

/** Runs jobs, a few at a time. */
export async function each(items, atOnce, job) {
  const queue = items[Symbol.iterator]();
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (const item of queue) await job(item);
    }),
  );
}

let lines;
/** Says that a fault may happen, and waits until the driver has made it. */
export async function fault(name) {
  lines ??= createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  console.log(`READY ${name}`);
  const line = await lines.next();
  assert.ok(!line.done, `the driver ended instead of making the fault ${name}`);
}

export function closeInput() {
  process.stdin.pause();
  process.stdin.destroy?.();
}

/**
 * A page in a browser of its own data, whose requests, errors, policy violations and storage are checked at the end.
 */
export async function withPage(browser, options, run) {
  const { url = env.url, width = 1280, height = 800, scheme = "light", origins = [], motion = "no-preference" } = options;
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: scheme,
    reducedMotion: motion,
    permissions: ["clipboard-read", "clipboard-write"],
  });
  try {
    const page = await context.newPage();
    const allowed = new Set([new URL(url).origin, ...origins]);
    const strangers = [];
    const errors = [];
    context.on("request", (request) => {
      const target = new URL(request.url());
      if (!allowed.has(target.origin) && target.protocol !== "data:" && target.protocol !== "about:") strangers.push(request.url());
    });
    page.on("pageerror", (error) => errors.push(error.message));
    page.on("dialog", (dialog) => {
      errors.push(`a script opened a dialog: ${dialog.message()}`);
      void dialog.dismiss();
    });
    await page.addInitScript(() => {
      globalThis.violations = [];
      document.addEventListener("securitypolicyviolation", (event) =>
        globalThis.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`),
      );
    });
    await page.goto(options.fragment === undefined ? url : url + options.fragment);
    const result = await run(page, context);
    const left = await page.evaluate(async () => ({
      violations: globalThis.violations,
      local: localStorage.length,
      session: sessionStorage.length,
      cookies: document.cookie,
      databases: (await indexedDB.databases()).length,
      caches: globalThis.caches === undefined ? 0 : (await caches.keys()).length,
      workers: navigator.serviceWorker === undefined ? 0 : (await navigator.serviceWorker.getRegistrations()).length,
    }));
    assert.deepEqual(strangers, [], "requests left the agent's origin");
    assert.deepEqual(errors, [], "scripts failed");
    assert.deepEqual(left, { violations: [], local: 0, session: 0, cookies: "", databases: 0, caches: 0, workers: 0 });
    if (env.token !== "") assert.ok(!page.url().includes(env.token), "the token is in the URL");
    return result;
  } catch (error) {
    const page = context.pages()[0];
    if (page !== undefined && env.screenshots !== "") await shot(page, `failed-${Date.now()}`);
    throw error;
  } finally {
    await context.close();
  }
}

/** Gives the token if the page asks for one. */
export async function enter(page, token = env.token) {
  if (token === "") return;
  await page.getByLabel("Bearer token").fill(token);
  await page.getByRole("button", { name: "Use this token" }).click();
}

export async function live(page) {
  await page.locator('[data-link="live"]').waitFor({ timeout: 20_000 });
}

export async function shot(page, name) {
  if (env.screenshots === "") return;
  mkdirSync(env.screenshots, { recursive: true });
  await page.screenshot({ path: join(env.screenshots, `${name}.png`), animations: "disabled" });
}

/** Nothing stands out of the page to the side. */
export async function fits(page) {
  const sizes = await page.evaluate(() => {
    const main = document.querySelector("main");
    return { page: document.documentElement.scrollWidth - innerWidth, main: main.scrollWidth - main.clientWidth };
  });
  assert.ok(sizes.page <= 0 && sizes.main <= 0, `the page is wider than the window: ${JSON.stringify(sizes)}`);
}

/** What axe-core finds. */
export async function accessible(page, where) {
  const source = (await import("node:fs")).readFileSync(AXE, "utf8");
  if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(source);
  const found = await page.evaluate(async () => {
    const result = await globalThis.axe.run(document, { resultTypes: ["violations"] });
    return result.violations.map((v) => ({
      id: v.id,
      help: v.help,
      nodes: v.nodes.slice(0, 4).map((n) => `${n.target.join(" ")}: ${n.failureSummary}`),
    }));
  });
  assert.deepEqual(found, [], `axe-core on ${where}`);
}

/** Asks again until it is so. */
export async function until(condition, what, ms = 20_000) {
  const end = Date.now() + ms;
  for (;;) {
    if (await condition()) return;
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

export { assert };
