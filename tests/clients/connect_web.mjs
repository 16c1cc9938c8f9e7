// Asks an agent everything over gRPC-Web as a page does, with connect-web. Prints one JSON line for each
// case, and fails if one did. tests/integration/clients.rs runs it:
//
//     node connect_web.mjs URL DESCRIPTORS [--expect-unauthenticated]
//
// URL is the agent's; DESCRIPTORS is a file with the FileDescriptorSet of its services. TOKEN is sent as a
// bearer token if it is set, and CANDIDATE_PREFIX is what the candidates' names begin with: an agent may let
// its caller act for candidates of its own alone. With --expect-unauthenticated everything must be refused
// but health. NODE_EXTRA_CA_CERTS is Node's own variable for an authority.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";

// An import would look for packages beside this file, and they are kept out of the repository's folders.
const require = createRequire(new URL("../../target/test-tools/node/package.json", import.meta.url));
const { createFileRegistry, fromBinary } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = require("@connectrpc/connect");
const { createGrpcWebTransport } = require("@connectrpc/connect-web");

const [url, descriptors, ...flags] = process.argv.slice(2);
const { TOKEN, CANDIDATE_PREFIX = "" } = process.env;
const [a, b] = ["a", "b"].map((name) => CANDIDATE_PREFIX + name);
const ELECTION = "grpc.election_agent.v1.Election";
const TERM = 30_000;
// Elections of this run alone, so that it can be run again.
const kind = `connect-web-${randomUUID()}`;

// No code is generated: the services are built from their descriptors, with a method that there is not.
const files = fromBinary(FileDescriptorSetSchema, readFileSync(descriptors));
const service = files.file.flatMap((file) => file.service).find(({ name }) => name === "Election");
service.method.push({ ...service.method[0], name: "Abdicate" });
const registry = createFileRegistry(files);

const withToken = (next) => (request) => {
  if (TOKEN) request.header.set("authorization", `Bearer ${TOKEN}`);
  return next(request);
};
// A call that hangs fails its case.
const defaultTimeoutMs = 10_000;
const transport = (options) =>
  createGrpcWebTransport({ baseUrl: url, interceptors: [withToken], defaultTimeoutMs, ...options });
const election = createClient(registry.getService(ELECTION), transport());
const agent = createClient(registry.getService("grpc.election_agent.v1.Agent"), transport());
const electionInJson = createClient(registry.getService(ELECTION), transport({ useBinaryFormat: false }));
const health = createClient(registry.getService("grpc.health.v1.Health"), transport());

const campaign = (request) => election.campaign({ election: "e", kind, candidate: a, term: TERM, ...request });

/** Who leads, as REST tells it. */
function rest() {
  const headers = TOKEN ? { authorization: `Bearer ${TOKEN}` } : {};
  return fetch(`${url}/election/${kind}/e`, { headers });
}

/** Waits for a call that must fail so. */
async function refused(code, says, call) {
  const error = ConnectError.from(await call.then((answer) => assert.fail(`answered: ${answer}`), (error) => error));
  assert.equal(Code[error.code], Code[code], error.message);
  assert.ok(error.rawMessage.includes(says), error.rawMessage);
  assert.ok(error.metadata.has("x-request-id"), "the refusal has no x-request-id");
}

let token;

async function health_check() {
  for (const service of ["", "liveness", "readiness", ELECTION]) {
    assert.equal((await health.check({ service })).status, 1, service);
  }
}

// They run in this order, each on what the ones before have left.
const everything = {
  async campaign() {
    const won = await campaign({ value: "here: ä" });
    assert.deepEqual([won.elected, won.leader, won.kind, won.value], [true, a, kind, "here: ä"]);
    assert.ok(won.validFor > 0 && won.validFor < TERM, `${won.validFor}`);
    assert.equal(typeof won.token, "bigint");
    token = won.token;
  },
  async token_is_that_of_rest() {
    const answer = await rest();
    assert.equal(BigInt((await answer.json()).token), token);
  },
  async campaign_lost() {
    const lost = await campaign({ candidate: b });
    assert.deepEqual([lost.elected, lost.leader, lost.token, lost.validFor], [false, a, token, 0]);
  },
  async get_leader() {
    assert.equal((await election.getLeader({ election: "e", kind })).value, a);
  },
  async list_leaders() {
    const { leaders, nextPageToken } = await election.listLeaders({ kind });
    assert.deepEqual(leaders.map(({ election, name, token }) => [election, name, token]), [["e", a, token]]);
    assert.ok(typeof leaders[0].electedAt === "bigint" && nextPageToken === "");
  },
  async extend_elected_term() {
    assert.ok((await election.extendElectedTerm({ election: "e", kind, leader: a, term: TERM, token })).value);
  },
  async extend_refused() {
    const answer = await election.extendElectedTerm({ election: "e", kind, leader: b, term: TERM });
    assert.deepEqual([answer.value, answer.reason], [false, "HELD_BY_OTHER"]);
  },
  async handover() {
    const request = { election: "e", kind, leader: b, term: TERM, currentLeader: a, token };
    assert.ok((await election.handover(request)).value);
  },
  async resign() {
    assert.equal((await election.resign({ election: "e", kind, leader: b, token })).reason, "STALE_TOKEN");
    assert.ok((await election.resign({ election: "e", kind, leader: b })).value);
  },
  async get_leader_of_a_vacant_election() {
    await refused(Code.NotFound, "vacant", election.getLeader({ election: "e", kind }));
  },
  async list_changes_and_waiters() {
    const { changes } = await election.listChanges({ election: "e", kind });
    assert.ok(Array.isArray(changes));
    const { waiters, nextPageToken } = await election.listWaiters({ kind });
    assert.deepEqual([waiters, nextPageToken], [[], ""]);
  },
  async about_the_agent() {
    const state = await agent.getAgent({});
    assert.ok(state.ready && state.limits.length > 0 && typeof state.uptime === "bigint");
    const { nodes, quorum, voting } = await agent.listNodes({});
    assert.deepEqual([nodes.length, quorum, voting], [1, true, 1]);
    assert.ok((await agent.listPermissions({ election: "e", kind, candidate: a })).actions.includes("resign"));
    await refused(Code.PermissionDenied, "", agent.getConfiguration({}));
  },
  async get_pods() {
    const call = election.getPods({ namespace: "n", deployment: "d" });
    await refused(Code.Unimplemented, "does not look up pods", call);
  },
  async invalid_argument() {
    await refused(Code.InvalidArgument, "`term` is 5: give 1000 to", campaign({ term: 5 }));
  },
  async unknown_method() {
    await refused(Code.Unimplemented, "", election.abdicate({}));
  },
  async too_large() {
    // A message over the limit, and a body so large that it is not looked into.
    for (const length of [70_000, 200_000]) {
      await refused(Code.ResourceExhausted, "over 65536 bytes", campaign({ value: "v".repeat(length) }));
    }
  },
  async messages_in_json() {
    await refused(Code.InvalidArgument, "must be protobuf", electionInJson.getLeader({ election: "e" }));
  },
  health_check,
  async health_watch() {
    // Leaving the loop alone would leave the request open, and Node waits for it.
    const page = new AbortController();
    const { value } = await health.watch({}, { signal: page.signal })[Symbol.asyncIterator]().next();
    page.abort();
    assert.equal(value.status, 1);
  },
};

// What somebody meets who has to prove who they are, and does not.
const unauthenticated = {
  health_check,
  async every_rpc() {
    for (const { localName } of registry.getService(ELECTION).methods) {
      await refused(Code.Unauthenticated, "", election[localName]({}));
    }
  },
  async rest() {
    const answer = await rest();
    assert.deepEqual([answer.status, answer.headers.get("www-authenticate")], [401, "Bearer"]);
  },
};

const cases = flags.includes("--expect-unauthenticated") ? unauthenticated : everything;
for (const [name, run] of Object.entries(cases)) {
  const error = await run().then(() => "", (error) => `${error.stack}`);
  console.log(JSON.stringify({ case: name, error }));
  if (error) process.exitCode = 1;
}
