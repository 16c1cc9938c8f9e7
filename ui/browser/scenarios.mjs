import { statSync } from "node:fs";
import {
  accessible,
  assert,
  campaign,
  each,
  enter,
  env,
  extend,
  fault,
  firstRow,
  fits,
  live,
  resign,
  shot,
  until,
  withPage,
} from "./harness.mjs";
import { serve } from "./serve.mjs";

const PAGES = [
  ["elections", "#/elections", "Elections"],
  ["election", "#/elections/shop/checkout", "checkout"],
  ["nodes", "#/nodes", "Lease nodes"],
  ["pods", "#/pods", "Pods"],
  ["agent", "#/agent", "Agent"],
];

/** Some elections of several kinds, with leaders that stay. */
async function someElections() {
  const names = ["checkout", "invoices", "search-index", "stock"];
  for (const [index, name] of names.entries()) {
    await campaign("shop", name, `shop-${index}`, { value: index % 2 === 0 ? `https://10.0.0.${index + 1}:9000` : `10.0.0.${index + 1}` });
  }
  await campaign("batch", "nightly-report", "worker-1");
}

const rowOf = (page, name) => page.locator("[role=row][data-row]", { hasText: name });
const tick = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** An API that answers, or says UNIMPLEMENTED. */
async function settled(page) {
  await page.waitForLoadState("networkidle", { timeout: 1_500 }).catch(() => {});
  await until(async () => !(await page.getByText("Asking the agent…").first().isVisible()), "the page has its data");
}

export const scenarios = {
  /** Each page opens and says what it should. */
  async pages(browser) {
    await someElections();
    for (const scheme of ["light", "dark"]) {
      await withPage(browser, { scheme }, async (page) => {
        await enter(page);
        await live(page);
        for (const [name, fragment, title] of PAGES) {
          await page.goto(env.url + fragment);
          await page.getByRole("heading", { level: 1, name: title }).waitFor();
          await settled(page);
          await fits(page);
          await shot(page, `${name}-${scheme}`);
        }
        await page.goto(`${env.url}#/elections?kind=shop`);
        await rowOf(page, "checkout").getByText("shop-0").waitFor();
        const link = rowOf(page, "checkout").getByRole("link", { name: "https://10.0.0.1:9000" });
        assert.equal(await link.getAttribute("rel"), "noopener noreferrer");
        assert.equal(await rowOf(page, "invoices").getByRole("link").count(), 1, "a value without http is no link");
        await page.getByLabel("Kind").selectOption({ label: "batch" });
        await rowOf(page, "nightly-report").waitFor();
        await until(async () => (await rowOf(page, "checkout").count()) === 0, "only the kind is listed");
        await page.getByLabel("Kind").selectOption({ label: "all kinds" });
        await page.getByLabel("Name begins with").fill("inv");
        await until(async () => (await page.locator("[role=row][data-row]").count()) === 1, "only the prefix is listed");
      });
    }
  },

  /** The nodes, the agent and what it remembers are told, by an agent that has the calls. */
  async agent(browser) {
    await someElections();
    // Of its own, so that the scenario can run again at once.
    const stock = `stock-${Date.now()}`;
    await campaign("shop", stock, "shop-3");
    await withPage(browser, { fragment: "#/nodes" }, async (page) => {
      await enter(page);
      await page.getByText(/There is a quorum/).waitFor();
      await page.goto(`${env.url}#/agent`);
      await page.getByText("EA_MAX_STREAMS").first().waitFor();
      await page.getByRole("heading", { name: "About" }).waitFor();
      // Only with authentication may anybody see the configuration.
      const settings = page.getByRole("cell", { name: "EA_MAX_TERM" });
      const refused = page.getByText("Only for callers that may administer the agent", { exact: false });
      await settings.or(refused).first().waitFor();
      await page.goto(`${env.url}#/elections/shop/${stock}`);
      await live(page);
      await resign("shop", stock, "shop-3");
      await page.getByText("resigned", { exact: false }).first().waitFor();
      await campaign("shop", stock, "shop-9");
      await page.getByRole("cell", { name: "elected shop-9" }).first().waitFor();
    });
    // What the agent remembers is there when the page is opened again.
    await withPage(browser, { fragment: `#/elections/shop/${stock}` }, async (page) => {
      await enter(page);
      await page.getByRole("cell", { name: "elected shop-9" }).first().waitFor();
      // A campaign that waits is seen.
      const waiting = campaign("shop", stock, "shop-10", { wait: 10_000 });
      await page.locator(".waiters-list", { hasText: "shop-10" }).waitFor();
      // Whoever may ends a term, after a question.
      await page.getByRole("button", { name: "Resign…" }).click();
      await page.keyboard.press("Escape");
      await until(async () => (await page.locator("dialog").count()) === 0, "Escape closes the question");
      await page.getByRole("button", { name: "Resign…" }).click();
      await shot(page, "resign");
      await page.locator("dialog").getByRole("button", { name: "Resign" }).click();
      assert.equal((await waiting).elected, true);
      await page.getByRole("cell", { name: "elected shop-10" }).first().waitFor();
      await page.getByRole("button", { name: "Hand over…" }).click();
      await page.getByLabel("New leader").fill("shop-11");
      await page.getByLabel("Term, in seconds").fill("30");
      await page.locator("dialog").getByRole("button", { name: "Hand over" }).click();
      await page.getByRole("cell", { name: "handed over to shop-11" }).first().waitFor();
      await page.getByRole("button", { name: "Copy curl" }).click();
      await page.getByText("Copied").waitFor();
      assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^curl -s .*election\/shop\/stock-/);
    });
  },

  /** An agent without the newer calls: the page says so. */
  async older(browser) {
    await someElections();
    await withPage(browser, { fragment: "#/elections?kind=shop" }, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "checkout").waitFor();
      for (const fragment of ["#/nodes", "#/agent", "#/elections/shop/checkout"]) {
        await page.goto(env.url + fragment);
        await page.getByText("This agent does not offer this", { exact: false }).first().waitFor();
      }
    });
  },

  /** Changes are seen within 200 ms. */
  async live(browser) {
    await campaign("live", "clock", "tick-0");
    await withPage(browser, { fragment: "#/elections?kind=live" }, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "clock").waitFor();
      await page.evaluate(() => {
        globalThis.seen = {};
        new MutationObserver(() => {
          const text = document.querySelector('[data-row="live/clock"] .leader')?.textContent ?? "";
          if (!(text in globalThis.seen)) globalThis.seen[text] = Date.now();
        }).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true });
      });
      const delays = [];
      let leader = "tick-0";
      for (let i = 1; i <= 20; i += 1) {
        await resign("live", "clock", leader);
        leader = `tick-${i}`;
        await campaign("live", "clock", leader);
        const done = Date.now();
        const seen = await page.waitForFunction(
          (name) => Object.entries(globalThis.seen).find(([text]) => text.split(/\s|gap/)[0] === name)?.[1],
          leader,
          { polling: 10 },
        );
        delays.push((await seen.jsonValue()) - done);
        // Not in step with the page's frames.
        await tick(130 + 17 * (i % 5));
      }
      delays.sort((a, b) => a - b);
      console.log(`# changes seen after ${delays[10]} ms (median), at most ${delays.at(-1)} ms`);
      assert.ok(delays[10] <= 200, `changes are seen after ${delays} ms`);
      assert.ok(await rowOf(page, "clock").evaluate((row) => /glow-/.test(row.className)), "a row that changed glows");
      await resign("live", "clock", leader);
      await rowOf(page, "clock").getByText("resigned:").waitFor();
    });
  },

  /** A bar drains, and refills when the term is extended although nobody tells the page. */
  async terms(browser) {
    await withPage(browser, { fragment: "#/elections?kind=terms" }, async (page) => {
      await enter(page);
      await live(page);
      // From here on: a page takes longer to open than a short term lasts while other programs need the processor.
      await campaign("terms", "lapses", "w", { term: 4_000 });
      await campaign("terms", "extended", "w", { term: 10_000 });
      await rowOf(page, "extended").waitFor();
      const share = () =>
        rowOf(page, "extended").evaluate((row) => Number(/scaleX\(([\d.]+)\)/.exec(row.querySelector(".fill").style.transform)[1]));
      await until(async () => (await share()) < 0.7, "the bar drains");
      await extend("terms", "extended", "w", 60_000);
      await until(async () => (await share()) > 0.8, "the bar refills");
      await rowOf(page, "lapses").getByText("term ended:").waitFor();
    });
  },

  /** Nodes fail one after the other, and come back. Faults: node-down, quorum-lost, nodes-up. */
  async nodes(browser) {
    await campaign("nodes", "e", "w");
    await withPage(browser, {}, async (page, context) => {
      await enter(page);
      await live(page);
      const other = env.token === "" ? await context.newPage() : undefined;
      await other?.goto(`${env.url}#/nodes`);
      await other?.getByText(/more node may fail, and/).waitFor();
      await fault("node-down");
      await other?.getByText("The next failure stops all elections.").waitFor({ timeout: 30_000 });
      if (other !== undefined) await shot(other, "node-down");
      assert.equal(await page.getByText("The agent is not certain").count(), 0);
      await fault("quorum-lost");
      await page.getByText("The agent is not certain").waitFor({ timeout: 30_000 });
      await page.locator(".elections.unsure").waitFor();
      assert.equal(await rowOf(page, "e").getByText("vacant").count(), 0, "a vacancy is never guessed");
      await other?.getByText(/No quorum/).waitFor({ timeout: 30_000 });
      await shot(page, "quorum-lost");
      await fault("nodes-up");
      await until(async () => (await page.getByText("The agent is not certain").count()) === 0, "the agent is certain again", 60_000);
      await other?.getByText(/There is a quorum/).waitFor({ timeout: 60_000 });
    });
  },

  /** The agent ends and starts again at the same port. Faults: agent-down, agent-up. */
  async restart(browser) {
    await campaign("restart", "e", "w");
    await withPage(browser, {}, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "e").waitFor();
      await fault("agent-down");
      await page.getByText("Not connected to the agent").waitFor();
      await shot(page, "agent-down");
      await fault("agent-up");
      await page.locator(".gap").getByText("Not connected").waitFor({ timeout: 30_000 });
      await live(page);
      await shot(page, "agent-up");
    });
  },

  /** A token is asked for, refused and accepted; UI_TOKEN, and UI_WEAK_TOKEN for a caller who may do less. */
  async login(browser) {
    assert.notEqual(env.token, "", "UI_TOKEN is needed");
    await campaign("shop", "checkout", "shop-0");
    await withPage(browser, {}, async (page) => {
      await page.getByText("The agent answers only callers that it knows (401).").waitFor();
      await shot(page, "login");
      await accessible(page, "the login page");
      await enter(page, "surely-not-a-token");
      await page.getByText("The agent does not accept this token (401)", { exact: false }).waitFor();
      await enter(page);
      await live(page);
      await rowOf(page, "checkout").waitFor();
      const kept = await page.evaluate(() => document.documentElement.outerHTML);
      assert.ok(!kept.includes(env.token), "the token is nowhere in the page");
      await page.getByRole("button", { name: "Forget token" }).click();
      await page.getByLabel("Bearer token").waitFor();
      await enter(page);
      await live(page);
      // Loaded again, the page does not know it any more.
      await page.reload();
      await page.getByLabel("Bearer token").waitFor();
      if (env.weakToken !== "") {
        await enter(page, env.weakToken);
        await page.goto(`${env.url}#/agent`);
        await page.getByText("Only for callers that may administer the agent", { exact: false }).waitFor();
        await page.goto(`${env.url}#/elections/shop/checkout`);
        await until(
          async () => (await page.getByText(/not permitted to end|policies do not permit/).count()) > 0,
          "a refusal is explained",
        );
        assert.equal(await page.getByRole("button", { name: "Resign…" }).count(), 0);
      }
    });
  },

  /** Names and values of strangers are text, and do not break the page. */
  async hostile(browser) {
    const script = "<script>alert(1)<";
    const image = '"><img src=x onerror=alert(2)>';
    const long = "w".repeat(256);
    const wide = "\u{1f600}".repeat(64);
    const turned = "abc\u202egnp.exe";
    for (const [name, candidate, value] of [
      [script, image, "javascript:alert(3)"],
      [image, long, `https://evil.example/${"x".repeat(900)}`],
      [long, script, "\u202ehttps://a.example"],
      [wide, turned, "data:text/html,<script>alert(4)</script>"],
      [turned, wide, "https://good.example@evil.example/"],
      ["שלום עולם", "مرحبا", "אבג http://x"],
      ["constructor", "__proto__", "${alert(5)}"],
      [".x..", "%2e%2e", "\t"],
    ]) {
      await campaign("hostile", name, candidate, { value });
    }
    for (const [width, dir] of [[1280, "ltr"], [360, "ltr"], [1280, "rtl"], [360, "rtl"], [3840, "ltr"]]) {
      await withPage(browser, { width, fragment: "#/elections?kind=hostile" }, async (page) => {
        await page.evaluate((dir) => (document.documentElement.dir = dir), dir);
        await enter(page);
        await live(page);
        await until(async () => (await page.locator("[role=row][data-row]").count()) >= (width === 360 ? 4 : 8), "all rows");
        await fits(page);
        await shot(page, `hostile-${width}-${dir}`);
        await accessible(page, `hostile names at ${width} px, ${dir}`);
        assert.equal(await page.locator("main img, main script, main iframe").count(), 0);
        const links = await page.locator("main .value a").evaluateAll((all) => all.map((a) => new URL(a.href).protocol));
        assert.deepEqual([...new Set(links)], ["https:"]);
        for (const [name] of [[script], [long], [turned], ["constructor"]]) {
          await page.goto(`${env.url}#/elections/hostile/${encodeURIComponent(name)}`);
          await live(page);
          await page.getByRole("heading", { level: 1 }).waitFor();
          await fits(page);
        }
        await shot(page, `hostile-election-${width}-${dir}`);
      });
    }
    await withPage(browser, { fragment: `#/elections/hostile/${encodeURIComponent(turned)}` }, async (page) => {
      await enter(page);
      await page.getByRole("heading", { level: 1 }).getByText("U+202E").waitFor();
    });
  },

  /** Many elections: rows are drawn for those that are seen, and a search finds one. */
  async many(browser) {
    const names = Array.from({ length: env.elections }, (_, i) => `e-${String(i).padStart(6, "0")}`);
    await each(names, 16, (name) => campaign("many", name, "w"));
    await withPage(browser, { fragment: "#/elections?kind=many" }, async (page) => {
      await enter(page);
      await live(page);
      await page.getByText(`${env.elections.toLocaleString("en-US")} leaders`).waitFor({ timeout: 30_000 });
      assert.ok((await page.locator("[role=row][data-row]").count()) < 80, "only rows that are seen are drawn");
      assert.equal(await page.locator(".elections").getAttribute("aria-rowcount"), String(env.elections + 1));
      // Scrolls through all of it, and no frame takes long.
      const frames = await page.evaluate(async () => {
        const scroller = document.querySelector(".scroller");
        const times = [];
        let last = performance.now();
        for (let i = 0; i <= 120; i += 1) {
          scroller.scrollTop = (scroller.scrollHeight * i) / 120;
          await new Promise((resolve) => requestAnimationFrame(resolve));
          times.push(performance.now() - last);
          last = performance.now();
        }
        return times.sort((a, b) => a - b);
      });
      console.log(`# frames while scrolling: ${frames[60].toFixed(0)} ms (median), ${frames.at(-1).toFixed(0)} ms (longest)`);
      await rowOf(page, names.at(-1)).waitFor();
      await page.getByLabel("Name begins with").fill(names[Math.floor(names.length / 2)]);
      await rowOf(page, names[Math.floor(names.length / 2)]).waitFor();
      await shot(page, "many");
    });
    // More than an agent sends on one stream: the page says so, and a kind and a prefix help.
    const more = Array.from({ length: Math.max(0, 10_001 - env.elections) + 50 }, (_, i) => `f-${String(i).padStart(6, "0")}`);
    await each(more, 16, (name) => campaign("many", name, "w"));
    await withPage(browser, { fragment: "#/elections?kind=many" }, async (page) => {
      await enter(page);
      await page.getByText("Too many elections for one page.").waitFor();
      await shot(page, "too-many");
      await page.getByLabel("Name begins with").fill("f-00004");
      await live(page);
      await rowOf(page, "f-000049").waitFor();
    });
    await each([...names, ...more], 16, (name) => resign("many", name, "w"));
  },

  /** axe-core finds nothing, on each page, in both themes, wide and narrow. */
  async axe(browser) {
    await someElections();
    await campaign("shop", "gone", "shop-7");
    await withPage(browser, { fragment: "#/elections?kind=shop" }, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "gone").waitFor();
      await resign("shop", "gone", "shop-7");
      await rowOf(page, "gone").getByText("resigned:").waitFor();
      await accessible(page, "a vacancy");
    });
    for (const scheme of ["light", "dark"]) {
      for (const width of [1280, 360]) {
        await withPage(browser, { scheme, width }, async (page) => {
          await enter(page);
          for (const [name, fragment, title] of PAGES) {
            await page.goto(env.url + fragment);
            await page.getByRole("heading", { level: 1, name: title }).waitFor();
            await settled(page);
            await fits(page);
            await accessible(page, `${name}, ${scheme}, ${width} px`);
            if (width === 360) await shot(page, `${name}-${scheme}-360`);
          }
          await page.goto(`${env.url}#/elections/shop/checkout`);
          const button = page.getByRole("button", { name: "Hand over…" });
          const older = page.getByText("This agent does not tell what you may do");
          await button.or(older).first().waitFor();
          if ((await older.count()) === 0) {
            await button.click();
            await accessible(page, `the question, ${scheme}, ${width} px`);
          }
        });
      }
    }
  },

  /** Everything is reached with the keyboard. */
  async keyboard(browser) {
    const names = Array.from({ length: 60 }, (_, i) => `k-${String(i).padStart(2, "0")}`);
    await each(names, 8, (name) => campaign("keys", name, "w"));
    await withPage(browser, { fragment: "#/elections?kind=keys" }, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "k-00").waitFor();
      const focused = () => page.evaluate(() => (document.activeElement?.tagName === "A" ? document.activeElement.textContent : ""));
      if (env.token === "") {
        await page.keyboard.press("Tab");
        assert.equal(await focused(), "Skip to the content");
        const seen = await page.evaluate(() => document.activeElement.getBoundingClientRect().top);
        assert.ok(seen >= 0, "the skip link is seen when it has the focus");
        await page.keyboard.press("Enter");
      } else {
        await page.locator("main").focus();
      }
      assert.equal(await page.evaluate(() => document.activeElement.id), "main");
      for (let i = 0; i < 12 && !(await focused()).includes("k-00"); i += 1) await page.keyboard.press("Tab");
      assert.match(await focused(), /k-00/);
      const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.equal(outline, "solid", "the focus is seen");
      await page.keyboard.press("ArrowDown");
      await until(async () => (await focused()).includes("k-01"), "the next row");
      await page.keyboard.press("End");
      await until(async () => (await focused()).includes("k-59"), "the last row");
      await page.keyboard.press("Home");
      await until(async () => (await focused()).includes("k-00"), "the first row");
      await page.keyboard.press("PageDown");
      await until(async () => !(await focused()).includes("k-00"), "a page further");
      const before = await focused();
      await page.keyboard.press("Enter");
      await page.getByRole("heading", { level: 1, name: before.split("/")[1] }).waitFor();
      await until(async () => (await page.evaluate(() => document.activeElement.tagName)) === "H1", "the heading is announced");
    });
  },

  /** A page of another origin; EA_CORS_ORIGINS=http://127.0.0.1:UI_CROSS_PORT. */
  async cross(browser) {
    await someElections();
    const agent = new URL(env.api);
    const server = await serve({ agent: env.api, port: env.crossPort, bundleOnly: true });
    try {
      await withPage(browser, { url: server.url, fragment: "#/elections?kind=shop", origins: [agent.origin] }, async (page) => {
        await enter(page);
        await live(page);
        await rowOf(page, "checkout").waitFor();
        await page.goto(`${server.url}#/elections/shop/checkout`);
        await page.getByText(`ELECTION_AGENT_URL=${agent.origin}`).waitFor();
      });
    } finally {
      server.stop();
    }
  },

  /** Behind a proxy with a path prefix that cuts what takes long: nobody is bothered, and nothing is missed. */
  async proxy(browser) {
    await campaign("proxy", "e", "w-0");
    const server = await serve({ agent: env.api, prefix: "/some/prefix", cut: 3_000 });
    try {
      await withPage(browser, { url: server.url, fragment: "#/elections?kind=proxy" }, async (page) => {
        await enter(page);
        await live(page);
        const noticed = page.locator(".notice");
        for (let i = 1; i <= 8; i += 1) {
          await campaign("proxy", "e", `w-${i - 1}`);
          await resign("proxy", "e", `w-${i - 1}`);
          await campaign("proxy", "e", `w-${i}`);
          await rowOf(page, "proxy").getByText(`w-${i}`, { exact: true }).waitFor({ timeout: 3_000 });
          assert.equal(await noticed.count(), 0, "a cut is no news");
          await tick(1_000);
        }
      });
    } finally {
      server.stop();
    }
  },

  /** After a sleep, in which the stream died without a word, the page connects again as soon as it is looked at. */
  async sleep(browser) {
    await campaign("sleep", "e", "w-0");
    const server = await serve({ agent: env.api });
    try {
      await withPage(browser, { url: server.url, fragment: "#/elections?kind=sleep" }, async (page) => {
        await enter(page);
        await live(page);
        await rowOf(page, "sleep").getByText("w-0").waitFor();
        server.stall();
        await resign("sleep", "e", "w-0");
        await campaign("sleep", "e", "w-1");
        await tick(8_000);
        assert.equal(await rowOf(page, "sleep").getByText("w-1").count(), 0, "nothing comes through");
        server.resume();
        await page.evaluate(() => window.dispatchEvent(new Event("online")));
        await rowOf(page, "sleep").getByText("w-1").waitFor({ timeout: 2_000 });
        await page.locator(".gap").waitFor();
      });
    } finally {
      server.stop();
    }
  },

  /** Pages that are written from right to left do not break. */
  async rtl(browser) {
    await someElections();
    for (const width of [1280, 360]) {
      await withPage(browser, { width }, async (page) => {
        await enter(page);
        await page.evaluate(() => (document.documentElement.dir = "rtl"));
        for (const [name, fragment, title] of PAGES) {
          await page.goto(env.url + fragment);
          await page.getByRole("heading", { level: 1, name: title }).waitFor();
          await settled(page);
          await fits(page);
          await accessible(page, `${name}, from right to left, ${width} px`);
          await shot(page, `${name}-rtl-${width}`);
        }
        // A bar drains towards the side where the line begins.
        await page.goto(`${env.url}#/elections?kind=shop`);
        const origin = await page.locator('[data-row="shop/checkout"] .fill').evaluate((fill) => {
          const [x] = getComputedStyle(fill).transformOrigin.split(" ").map(parseFloat);
          return x / fill.offsetWidth;
        });
        assert.ok(origin > 0.99, `the bar's origin is at ${origin}`);
      });
    }
  },

  /** A page without JavaScript says what it needs, and people who do not want motion get none. */
  async plain(browser) {
    const context = await browser.newContext({ javaScriptEnabled: false });
    const page = await context.newPage();
    await page.goto(env.url);
    await page.locator("noscript p").waitFor();
    assert.match(await page.locator("noscript p").innerText(), /This page needs JavaScript/);
    await shot(page, "no-javascript");
    await context.close();
    await campaign("plain", "e", "w");
    await withPage(browser, { fragment: "#/elections?kind=plain", motion: "reduce" }, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "plain").waitFor();
      await resign("plain", "e", "w");
      await rowOf(page, "plain").getByText("resigned:").waitFor();
      const animations = await page.evaluate(() => document.getAnimations().length);
      assert.equal(animations, 0, "nothing moves");
    });
  },

  /** The pods of a Deployment; UI_NAMESPACE and UI_DEPLOYMENT name one that the agent looks up. */
  async pods(browser) {
    const { UI_NAMESPACE: namespace = "", UI_DEPLOYMENT: deployment = "" } = process.env;
    assert.ok(namespace !== "" && deployment !== "", "UI_NAMESPACE and UI_DEPLOYMENT are needed");
    await withPage(browser, { fragment: "#/pods" }, async (page) => {
      await enter(page);
      await page.getByLabel("Namespace").fill(namespace);
      await page.getByLabel("Deployment").fill(deployment);
      await page.getByRole("button", { name: "Show" }).click();
      await page.getByRole("heading", { name: "Rollout" }).waitFor();
      await page.getByRole("heading", { name: /^Revision \d+/ }).first().waitFor();
      await page.getByText(/at most .* old when asked/).waitFor();
      await shot(page, "pods-of-a-deployment");
      await accessible(page, "the pods of a Deployment");
      await page.getByLabel("Deployment").fill("surely-not-there");
      await page.getByRole("button", { name: "Show" }).click();
      await page.getByText("The agent knows nothing of that name.", { exact: false }).waitFor();
    });
  },

  /** The screenshot of the documentation, of lively elections. UI_PICTURE names the file. */
  async picture(browser) {
    const kinds = {
      batch: ["billing-run", "cleanup", "nightly-report", "reindex"],
      infra: ["autoscaler", "backup", "cert-renewal", "dns-writer", "log-shipper"],
      shop: ["checkout-queue", "price-feed", "search-index", "stock-sync"],
    };
    const all = Object.entries(kinds).flatMap(([kind, names]) => names.map((name) => [kind, name]));
    const leaderOf = (name, n) => `${name.split("-")[0]}-${(n * 7) % 5}`;
    const termOf = (n) => Math.min(env.term, 18_000 + ((n * 7_919) % 30_000));
    for (const [n, [kind, name]] of all.entries()) {
      await campaign(kind, name, leaderOf(name, n), {
        term: termOf(n),
        value: n % 3 === 2 ? "" : `http://10.0.${n % 4}.${10 + n}`,
      });
    }
    await withPage(browser, { width: 1160, height: 720 }, async (page) => {
      await enter(page);
      await live(page);
      await rowOf(page, "cleanup").waitFor();
      const waits = [["shop", "price-feed", 2], ["batch", "nightly-report", 3], ["infra", "backup", 1]].flatMap(([kind, name, count]) =>
        Array.from({ length: count }, (_, i) => campaign(kind, name, `waiter-${i}`, { wait: 12_000 }).catch(() => {})),
      );
      for (let second = 0; second < 11; second += 1) {
        for (const [n, [kind, name]] of all.entries()) {
          if (second % (2 + (n % 5)) === 1 && n % 4 !== 0) await extend(kind, name, leaderOf(name, n), termOf(n)).catch(() => {});
        }
        await tick(1_000);
      }
      await resign("infra", "log-shipper", leaderOf("log-shipper", 8));
      await resign("batch", "reindex", leaderOf("reindex", 3));
      await campaign("batch", "reindex", "reindex-3", { term: 20_000 });
      await rowOf(page, "reindex").getByText("reindex-3").waitFor();
      await tick(150);
      if (env.picture !== "") {
        await page.screenshot({ path: env.picture, animations: "allow" });
        const { size } = statSync(env.picture);
        assert.ok(size <= 150 * 1024, `the picture has ${size} bytes`);
      }
      await Promise.all(waits);
    });
  },

  /** How long the first row takes, and what many elections with 100 changes a second cost. Prints figures. */
  async measure(browser) {
    const firsts = [];
    await campaign("measure", "first", "w");
    for (let i = 0; i < 9; i += 1) firsts.push(await firstRow("#/elections?kind=measure"));
    firsts.sort((a, b) => a - b);
    console.log(`# first row after ${firsts[4].toFixed(0)} ms (median), ${firsts[0].toFixed(0)} to ${firsts[8].toFixed(0)} ms`);
    const names = Array.from({ length: env.elections }, (_, i) => `m-${String(i).padStart(6, "0")}`);
    await each(names, 16, (name) => campaign("measured", name, "w"));
    await withPage(browser, { fragment: "#/elections?kind=measured" }, async (page, context) => {
      await enter(page);
      await live(page);
      await page.getByText(`${env.elections.toLocaleString("en-US")} leaders`).waitFor({ timeout: 30_000 });
      const all = await page.evaluate(() => performance.getEntriesByType("mark").map((m) => `${m.name} ${m.startTime.toFixed(0)}`));
      const parts = await page.evaluate(() =>
        performance.getEntriesByType("resource").map((r) => `${r.name.replace(/.*[/.]/, "")} ${r.startTime.toFixed(0)}-${r.responseEnd.toFixed(0)}`),
      );
      console.log(`# requests: ${parts.join(", ")}`);
      console.log(`# marks with ${env.elections} elections: ${all.join(", ")} ms`);
      const cdp = await context.newCDPSession(page);
      // CPU time of the main thread: other programs on a busy machine do not count.
      await cdp.send("Performance.enable", { timeDomain: "threadTicks" });
      const read = async () => {
        const { metrics } = await cdp.send("Performance.getMetrics");
        return Object.fromEntries(metrics.map((metric) => [metric.name, metric.value]));
      };
      const heap = async () => {
        await cdp.send("HeapProfiler.collectGarbage");
        return (await read()).JSHeapUsedSize / 1024 / 1024;
      };
      const watch = async (what, seconds) => {
        const before = await read();
        const started = performance.now();
        await tick(seconds * 1_000);
        const after = await read();
        const passed = (performance.now() - started) / 1_000;
        const share = (name) => (((after[name] - before[name]) / passed) * 100).toFixed(1);
        console.log(
          `# ${what}: main thread busy ${share("TaskDuration")} % (scripts ${share("ScriptDuration")} %, layout ${share("LayoutDuration")} %, styles ${share("RecalcStyleDuration")} %)`,
        );
        return Number(share("TaskDuration"));
      };
      await watch("idle", 10);
      console.log(`# heap ${(await heap()).toFixed(1)} MiB`);
      // A resignation and a campaign are two changes.
      let i = 0;
      let changes = 0;
      const timer = setInterval(() => {
        const name = names[(i * 7_919) % 40];
        const other = names[(i * 104_729) % names.length];
        i += 1;
        const chosen = i % 2 === 0 ? name : other;
        void resign("measured", chosen, "w")
          .then(() => campaign("measured", chosen, "w"))
          .then(() => (changes += 2), () => {});
      }, 20);
      const busy = await watch("100 changes a second", Math.min(20, env.seconds));
      console.log(`# ${changes} changes were made`);
      const heaps = [];
      const end = Date.now() + env.seconds * 1_000;
      while (Date.now() < end) {
        heaps.push(await heap());
        await tick(10_000);
      }
      clearInterval(timer);
      console.log(`# heap with changes, MiB: ${heaps.map((mib) => mib.toFixed(1)).join(" ")}`);
      assert.ok(busy <= 50, `the main thread is ${busy} % busy`);
    });
    await each(names, 16, (name) => resign("measured", name, "w"));
  },
};
