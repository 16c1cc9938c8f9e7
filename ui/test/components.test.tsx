import { createRouterTransport, createClient, Code, ConnectError } from "@connectrpc/connect";
import { cleanup, fireEvent, render, screen, waitFor, within } from "@testing-library/preact";
import { afterEach, beforeEach, expect, test } from "vitest";
import { App } from "../src/app";
import { agentIsOlder, followAgentInfo } from "../src/agent-info";
import { forgetToken, login, token, tokenWanted, useApi } from "../src/api/client";
import { Agent, Election, Leadership, State_Cause } from "@election-agent/client/proto";
import { LoginPage } from "../src/pages/login";
import { Name, Value } from "../src/parts/text";
import { parseRoute, route } from "../src/route";
import { held, vacant } from "./states";

globalThis.ResizeObserver ??= class {
  observe() {}
  disconnect() {}
  unobserve() {}
} as never;

interface Push {
  send(what: object): void;
}

/** An agent in this process. */
function agent(options: { permissions?: string[]; older?: boolean; states?: ReturnType<typeof held>[] } = {}) {
  const calls: { name: string; request: unknown }[] = [];
  const pushes: Push[] = [];
  const transport = createRouterTransport((router) => {
    router.service(Election, {
      getElection: (request) => held(request.kind, request.election, 5, "worker-1"),
      resign: (request) => {
        calls.push({ name: "resign", request });
        return { value: true };
      },
      handover: (request) => {
        calls.push({ name: "handover", request });
        return { value: false, reason: "STALE_TOKEN" };
      },
      listKinds: () => ({ kinds: ["batch", "web"] }),
      ...(options.older
        ? {}
        : {
            listWaiters: () => ({ waiters: [{ kind: "batch", election: "nightly", candidate: "worker-2", waitingFor: 1_000n }] }),
            listChanges: () => ({ changes: [] }),
          }),
    });
    router.service(Leadership, {
      async *observe(_request, context) {
        for (const state of options.states ?? []) yield { what: { case: "state" as const, value: state } };
        yield { what: { case: "synced" as const, value: {} } };
        const queue: object[] = [];
        let wake = () => {};
        pushes.push({
          send(what) {
            queue.push(what);
            wake();
          },
        });
        while (!context.signal.aborted) {
          while (queue.length > 0) yield queue.shift() as never;
          await new Promise<void>((resolve) => {
            wake = resolve;
            context.signal.addEventListener("abort", () => resolve());
          });
        }
      },
    });
    if (!options.older) {
      router.service(Agent, {
        getAgent: () => ({ name: "agent-0", version: "0.1.0", ready: true, limits: [{ setting: "EA_MAX_STREAMS", used: 5n, limit: 10n }] }),
        listPermissions: () => ({ actions: options.permissions ?? [] }),
        listNodes: () => ({ nodes: [{ name: "redis-1", role: "redis", up: true, voting: true }], needed: 1, voting: 1, survivable: 0, quorum: true }),
        getConfiguration: () => {
          throw new ConnectError("admin only", Code.PermissionDenied);
        },
      });
    }
  });
  useApi({
    base: "http://agent.example/",
    election: createClient(Election, transport),
    observe: (request, signal) => createClient(Leadership, transport).observe(request, { signal, timeoutMs: 0 }),
    agent: createClient(Agent, transport),
  });
  return { calls, pushes };
}

function go(fragment: string) {
  history.replaceState(null, "", fragment);
  route.value = parseRoute(fragment);
}

beforeEach(() => {
  forgetToken();
  go("#/elections");
});
afterEach(cleanup);

test("a hostile name is text", () => {
  const { container } = render(<Name text={'<img src=x onerror="alert(1)">\u202egnp'} />);
  expect(container.querySelector("img")).toBeNull();
  expect(container.textContent).toBe('<img src=x onerror="alert(1)">U+202Egnp');
  expect(container.querySelector("bdi")).not.toBeNull();
});

test("only http values are links, and they say nothing of where they are from", () => {
  const { container, rerender } = render(<Value text="javascript:alert(1)" />);
  expect(container.querySelector("a")).toBeNull();
  rerender(<Value text="https://10.0.0.7:9000/x" />);
  expect(container.querySelector("a")!.rel).toBe("noopener noreferrer");
});

test("elections are listed, and change", async () => {
  const { pushes } = agent({ states: [held("batch", "nightly", 5, "worker-1", { value: "10.0.0.1" }), held("web", "front", 6, "web-1")] });
  render(<App />);
  await screen.findByText("nightly");
  const row = () => screen.getByText("nightly").closest<HTMLElement>("[role=row]")!;
  expect(within(row()).getByText("worker-1")).toBeTruthy();
  expect(row().className).not.toContain("glow");
  await waitFor(() => expect(row().querySelector(".waiters")!.textContent).toContain("1"));
  pushes[0]!.send({ what: { case: "state", value: vacant("batch", "nightly", 5, State_Cause.EXPIRY) } });
  await waitFor(() => expect(row().textContent).toContain("term ended:"));
  expect(row().className).toContain("glow");
  pushes[0]!.send({ what: { case: "state", value: held("batch", "nightly", 9, "worker-3", { missed: true, cause: State_Cause.CAMPAIGN }) } });
  await waitFor(() => expect(row().textContent).toContain("worker-3"));
  expect(row().textContent).toContain("gap");
});

test("the filter narrows the list and is kept in the URL", async () => {
  agent({ states: [held("batch", "nightly", 5, "w"), held("batch", "weekly", 6, "w")] });
  render(<App />);
  await screen.findByText("weekly");
  fireEvent.input(screen.getByRole("searchbox"), { target: { value: "ni" } });
  await waitFor(() => expect(screen.queryByText("weekly")).toBeNull());
  expect(location.hash).toContain("prefix=ni");
});

test("the page says when the agent is not certain, and greys what may be old", async () => {
  const { pushes } = agent({ states: [held("batch", "nightly", 5, "w")] });
  const { container } = render(<App />);
  await screen.findByText("nightly");
  pushes[0]!.send({ what: { case: "certainty", value: { certain: false, unconfirmedFor: 3_000n, reason: "1 of 3 nodes answers" } } });
  await screen.findByText("The agent is not certain");
  expect(screen.getByText("1 of 3 nodes answers")).toBeTruthy();
  expect(container.querySelector(".elections.unsure")).not.toBeNull();
  pushes[0]!.send({ what: { case: "certainty", value: { certain: true } } });
  await waitFor(() => expect(screen.queryByText("The agent is not certain")).toBeNull());
});

test("an older agent's page works, and says what is missing", async () => {
  agent({ older: true, states: [held("batch", "nightly", 5, "w")] });
  followAgentInfo();
  render(<App />);
  await screen.findByText("nightly");
  await waitFor(() => expect(agentIsOlder.value).toBe(true));
  go("#/nodes");
  await screen.findByText(/The state of the nodes: This agent does not offer this/);
  go("#/elections/batch/nightly");
  await screen.findByText(/What the agent remembers: This agent does not offer this/);
  await screen.findByText(/use eactl to resign/);
});

test("buttons are shown only to those who may, and ask before they act", async () => {
  const { calls } = agent({ permissions: ["resign", "handover"], states: [held("batch", "nightly", 5, "worker-1")] });
  go("#/elections/batch/nightly");
  render(<App />);
  fireEvent.click(await screen.findByText("Resign…"));
  const dialog = document.querySelector("dialog")!;
  expect(dialog.textContent).toContain("token 5");
  expect(calls).toEqual([]);
  fireEvent.click(within(dialog).getByText("Resign"));
  await screen.findByText("Resigned.");
  expect(calls).toMatchObject([{ name: "resign", request: { kind: "batch", election: "nightly", leader: "worker-1", token: 5n } }]);

  fireEvent.click(screen.getByText("Hand over…"));
  fireEvent.input(screen.getByLabelText("New leader"), { target: { value: "worker-2" } });
  fireEvent.click(screen.getByText("Hand over"));
  await screen.findByText(/another token by now/);
  expect(calls[1]).toMatchObject({ name: "handover", request: { leader: "worker-2", currentLeader: "worker-1", token: 5n, term: 10_000 } });
});

test("whoever may not act sees no buttons", async () => {
  agent({ permissions: ["read"], states: [held("batch", "nightly", 5, "worker-1")] });
  go("#/elections/batch/nightly");
  render(<App />);
  await screen.findByText(/You are not permitted/);
  expect(screen.queryByText("Resign…")).toBeNull();
});

test("nodes and limits are told in words, and a refusal is explained", async () => {
  agent();
  go("#/nodes");
  render(<App />);
  await screen.findByText(/With one node, its failure stops all elections/);
  go("#/agent");
  await screen.findByText("5 of 10");
  await screen.findByText(/Only for callers that may administer the agent: .*policies do not permit/);
});

test("a token is asked for when the agent wants one, and is forgotten", async () => {
  agent();
  render(<App />);
  tokenWanted.value = "no credential";
  const input = await screen.findByLabelText("Bearer token");
  expect(screen.getByRole("alert").textContent).toContain("401");
  fireEvent.input(input, { target: { value: " secret " } });
  fireEvent.click(screen.getByText("Use this token"));
  expect(token.value).toBe("secret");
  expect(location.href).not.toContain("secret");
  expect(localStorage.length + sessionStorage.length).toBe(0);
  fireEvent.click(await screen.findByText("Forget token"));
  expect(token.value).toBe("");
  login("x");
  tokenWanted.value = "wrong";
  await screen.findByText(/does not accept this token/);
});

test("a token that no header can hold is refused with the reason, and the scheme before it is left out", () => {
  forgetToken();
  render(<LoginPage />);
  const give = (text: string) => {
    fireEvent.input(screen.getByLabelText("Bearer token"), { target: { value: text } });
    fireEvent.click(screen.getByRole("button", { name: "Use this token" }));
  };
  for (const [text, told] of [
    ["", "Give the token"],
    ["пароль", "characters that a token cannot have"],
    ["abc\u200bdef", "characters that a token cannot have"],
    ["abc def", "spaces or line breaks"],
  ] as const) {
    give(text);
    expect(screen.getAllByRole("alert").at(-1)!.textContent).toMatch(new RegExp(told));
    expect(token.value).toBe("");
  }
  give(" bearer abc.DEF_~+/= ");
  expect(token.value).toBe("abc.DEF_~+/=");
});
