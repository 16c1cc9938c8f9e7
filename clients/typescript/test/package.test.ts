import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { describe, expect, test } from "vitest";
import { Agent } from "@election-agent/client";
import { bundle, foreign } from "../scripts/bundle.mjs";
import { agent, directory, read, run } from "./support.js";

const root = fileURLToPath(new URL("..", import.meta.url));
const readme = readFileSync(join(root, "README.md"), "utf8");

/** The block of the README that begins so. */
function block(beginning: string): string {
  const blocks = [...readme.matchAll(/^```js\n(.*?)^```$/gms)].map((match) => match[1]!);
  const found = blocks.find((text) => text.startsWith(beginning));
  if (found === undefined) throw new Error(`the README has no block that begins with ${beginning}`);
  return found;
}

test("the version is that of the workspace", () => {
  const workspace = /^\[workspace\.package\][^[]*^version = "(.*?)"/ms.exec(read("Cargo.toml"))?.[1] ??
    /^\[package\][^[]*^version = "(.*?)"/ms.exec(read("Cargo.toml"))?.[1];
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  expect(version).toBe(workspace);
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as { version: string };
  expect(lock.version).toBe(workspace);
});

test("it depends on connect and protobuf-es only, of versions that run on the oldest Node.js that it names", () => {
  const { dependencies, engines } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    dependencies: Record<string, string>;
    engines: { node: string };
  };
  expect(Object.keys(dependencies)).toEqual([
    "@bufbuild/protobuf",
    "@connectrpc/connect",
    "@connectrpc/connect-node",
    "@connectrpc/connect-web",
  ]);
  const [, least] = /^>=(\d+)$/.exec(engines.node)!;
  const connect = new Set<string>();
  for (const [name, range] of Object.entries(dependencies)) {
    const found = JSON.parse(readFileSync(join(root, "node_modules", name, "package.json"), "utf8")) as {
      version: string;
      engines?: { node?: string };
    };
    const [, needed = "0"] = /(\d+)/.exec(found.engines?.node ?? "") ?? [];
    expect(Number(needed), name).toBeLessThanOrEqual(Number(least));
    // Two versions would not know each other's errors.
    if (name.startsWith("@connectrpc/")) connect.add(`${range} ${found.version}`);
  }
  expect(connect.size).toBe(1);
});

describe("the README", () => {
  test("begins with a program that leads", async () => {
    const { address } = await agent();
    const three = block('import { Agent } from "@election-agent/client";\nconst agent');
    expect(three.trim().split("\n")).toHaveLength(3);
    const job = "const job = async (token, signal) => console.log(token > 0, signal.aborted);";
    const { code, output } = await run(`${job}\n${three.replace(/"a\.example.*?"/, JSON.stringify(address))}`);
    expect({ code, output }).toEqual({ code: 0, output: "true false\n" });
  });

  test("fences work in SQLite", async () => {
    const { address } = await agent();
    const at = directory();
    const file = (name: string) => join(at, name);
    writeFileSync(file("fencing.mjs"), block("// fencing.mjs"));
    // The methods that node:sqlite and better-sqlite3 share, of a SQLite that every Node.js runs.
    const wasm = pathToFileURL(join(root, "node_modules/node-sqlite3-wasm/dist/node-sqlite3-wasm.js")).href;
    writeFileSync(
      file("sqlite.mjs"),
      `import wasm from ${JSON.stringify(wasm)};
      export class DatabaseSync {
        constructor(path) { this.db = new wasm.Database(path); }
        exec(sql) { this.db.exec(sql); }
        prepare(sql) {
          return { get: (...values) => this.db.get(sql, values) ?? undefined, run: (...values) => this.db.run(sql, values) };
        }
      }`,
    );
    const client = pathToFileURL(join(root, "dist/index.js")).href;
    const nightly = block("// nightly.mjs")
      .replace('"node:sqlite"', '"./sqlite.mjs"')
      .replace('"@election-agent/client"', JSON.stringify(client))
      .replace('"report.db"', JSON.stringify(file("report.db")))
      .replace(/"a\.example.*?"/, JSON.stringify(address));
    writeFileSync(file("nightly.mjs"), nightly);
    const source = `
      await import(${JSON.stringify(pathToFileURL(file("nightly.mjs")).href)});
      const { DatabaseSync } = await import(${JSON.stringify(pathToFileURL(file("sqlite.mjs")).href)});
      const { Fenced, fenced } = await import(${JSON.stringify(pathToFileURL(file("fencing.mjs")).href)});
      const db = new DatabaseSync(${JSON.stringify(file("report.db"))});
      const rows = () => db.prepare("SELECT count(*) AS rows FROM report").get().rows;
      const { token } = db.prepare("SELECT token FROM fence").get();
      const write = () => db.prepare("DELETE FROM report").run();
      try { fenced(db, "nightly", token - 1, write); } catch (error) { console.log(error instanceof Fenced, rows()); }
      try { fenced(db, "nightly", token, () => { write(); throw new Error("a bug"); }); } catch { console.log(rows()); }
      fenced(db, "nightly", token + 1, write);
      console.log(rows());`;
    const { code, output } = await run(source);
    expect({ code, output }).toEqual({ code: 0, output: "true 3\n3\n0\n" });
  });

  test("names what the client has", () => {
    const called = [...readme.matchAll(/`(\w+)`/g)].map((match) => match[1]!);
    for (const name of ["verify", "state", "leaders", "kinds", "campaign", "extend", "resign", "handover", "follow"]) {
      expect(called).toContain(name);
      expect(Agent.prototype).toHaveProperty(name);
    }
  });
});

test("what the dashboard gives people to copy leads", async () => {
  const { url } = await agent();
  const path = pathToFileURL(join(root, "../../ui/src/snippets.ts")).href;
  type Snippets = (base: string, kind: string, election: string, authentication: boolean) => { title: string; text: string }[];
  const { snippets } = (await import(/* @vite-ignore */ path)) as { snippets: Snippets };
  const name = "a \"b\" \u{1f600} ${c}";
  const { text } = snippets(`${url}/`, "batch", name, false).find(({ title }) => title === "TypeScript")!;
  const job = "const doSomeWork = async (token, signal) => console.log(token > 0, signal.aborted);";
  const { code, output } = await run(`${job}\n${text}`);
  expect({ code, output }).toEqual({ code: 0, output: "true false\n" });
  expect((await new Agent(url).state({ kind: "batch", election: name })).token).toBeGreaterThan(0);
});

describe("a page that only observes", () => {
  test("has nothing of Node.js, and nothing that leads", async () => {
    const { text } = (await bundle()) as { text: string };
    expect(text).toContain("no heartbeat within");
    expect(foreign(text)).toEqual([]);
  });

  test("would be found to have it", () => {
    const files = (path: string): string[] =>
      readdirSync(path, { withFileTypes: true }).flatMap((entry) =>
        entry.isDirectory() ? files(join(path, entry.name)) : entry.name.endsWith(".js") ? [join(path, entry.name)] : [],
      );
    const all = files(join(root, "dist")).map((path) => readFileSync(path, "utf8")).join("\n");
    const words = foreign(all) as string[];
    expect(words).toContain("connect-node");
    expect(words.length).toBeGreaterThanOrEqual(7);
  });
});
