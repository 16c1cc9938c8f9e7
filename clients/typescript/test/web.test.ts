import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, test } from "vitest";
import { Agent, ConfigError, NotKnown, type State, Unreachable } from "@election-agent/client/web";
import * as node from "@election-agent/client";
import { agent, cleanUp, quiet, rejected, thrown } from "./support.js";

describe("the entry for browsers, by gRPC-Web", () => {
  test("observes, reads, verifies, and makes the plain calls", async () => {
    const { url } = await agent();
    const page = new Agent(url);
    const states: State[] = [];
    let synced = 0;
    let token = 0;
    const options = { onSynced: () => (synced += 1) };
    for await (const state of page.observe("web", options)) {
      states.push(state);
      if (states.length === 1) {
        ({ token } = await page.campaign({ election: "web", candidate: "c", term: 30_000 }));
      } else if (states.length === 2) {
        expect(await page.verify({ election: "web", token })).toMatchObject({ current: true });
        await page.extend({ election: "web", candidate: "c", token, term: 30_000 });
        await page.resign({ election: "web", candidate: "c", token });
      } else {
        break;
      }
    }
    expect(states.map(({ leader, cause }) => `${leader?.name} ${cause}`)).toEqual([
      "undefined present",
      "c campaign",
      "undefined resign",
    ]);
    expect(synced).toBe(1);
    expect(await page.state("web")).toMatchObject({ leader: undefined, token });
    expect((await page.leaders({ all: true })).leaders).toEqual([]);
    const short = page.campaign({ election: "web", candidate: "c", term: 5 });
    expect(await rejected(short)).toMatchObject({ name: "Refused", code: "INVALID_ARGUMENT" });
  });

  test("asks the next endpoint, and says when none is reached", async () => {
    const { url } = await agent();
    await new Agent(`http://127.0.0.1:1,${url}/`).kinds();
    const error = await rejected(new Agent("http://127.0.0.1:1", { timeout: 300, log: quiet }).kinds());
    expect(error).toBeInstanceOf(Unreachable);
    const change = new Agent("http://127.0.0.1:1", { timeout: 300, log: quiet }).resign({
      election: "e",
      candidate: "c",
      token: 7,
    });
    // `fetch` does not tell whether anything was sent.
    expect(await rejected(change)).toBeInstanceOf(NotKnown);
  });

  test.each([
    ["half of an answer", "application/grpc-web+proto", Buffer.from([0, 0, 0])],
    ["a page", "text/html", Buffer.from("<title>somebody else</title>")],
  ])("takes %s for no refusal", async (_, type, body) => {
    const server = createServer((_, response) => void response.setHeader("content-type", type).end(body));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    cleanUp(() => {
      server.closeAllConnections();
      server.close();
    });
    const { port } = server.address() as AddressInfo;
    const one = new Agent(`http://127.0.0.1:${port}`, { timeout: 300, log: quiet });
    expect(await rejected(one.resign({ election: "e", candidate: "c", token: 7 }))).toBeInstanceOf(NotKnown);
  });

  test("takes addresses with paths, and no others", () => {
    for (const endpoint of ["", "not an address", "ftp://a", "https://a?b", "https://u:p@a"]) {
      expect(thrown(() => new Agent(endpoint)), endpoint).toBeInstanceOf(ConfigError);
    }
    new Agent("https://a/below/,https://b");
    expect(thrown(() => new Agent("https://u:secret@a")).message).not.toContain("secret");
    for (const [endpoints, options] of [[null], [["https://a"]], ["https://a", null], ["https://a", { tokenFile: "f" }], ["https://a", { token: "a\n" }]]) {
      expect(thrown(() => new Agent(endpoints as never, options as never))).toBeInstanceOf(ConfigError);
    }
  });

  test("shares its errors with the entry for Node.js, and does not lead", () => {
    expect(node.ConfigError).toBe(ConfigError);
    expect(node.Unreachable).toBe(Unreachable);
    expect("lead" in Agent.prototype).toBe(false);
    expect("lead" in node.Agent.prototype).toBe(true);
  });
});
