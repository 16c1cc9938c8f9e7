/** How to lead an election with this agent, for people to copy. Names may be anything: each is quoted for its language. */

// Letters and marks of any script may stand in quotes as they are. Everything else outside ASCII may not look like what it is.
const PLAIN = /^[\u0020-\u007e\p{L}\p{M}\p{N}]*$/u;

function escapes(text: string, extra: string, long: (hex: string) => string = (hex) => `\\U${hex.padStart(8, "0")}`): string {
  let result = "";
  for (const character of text) {
    const code = character.codePointAt(0)!;
    if (extra.includes(character)) result += `\\${character}`;
    else if (PLAIN.test(character)) result += character;
    else if (code > 0xffff) result += long(code.toString(16));
    else result += `\\u${code.toString(16).padStart(4, "0")}`;
  }
  return result;
}

/** Quotes for sh; for bash and zsh if there are characters that are not seen as what they are. */
export function shell(text: string): string {
  if (/^[A-Za-z0-9_./:@%+=-]+$/.test(text) && !text.startsWith("-")) return text;
  if (PLAIN.test(text)) return `'${text.replaceAll("'", `'\\''`)}'`;
  return `$'${escapes(text, "\\'")}'`;
}

/** Quotes for Python. */
export function python(text: string): string {
  return `"${escapes(text, '\\"')}"`;
}

/** Quotes for JavaScript. */
export function javascript(text: string): string {
  return `"${escapes(text, '\\"', (hex) => `\\u{${hex}}`)}"`;
}

/** A path of the REST API: names are encoded for URLs, and so safe for shells but for the single quote. */
function pathOf(kind: string, election: string): string {
  const encode = (name: string) => encodeURIComponent(name).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  // A name of dots only would be taken for a step in the path.
  const safe = (name: string) => (/^\.+$/.test(name) ? name.replaceAll(".", "%2E") : encode(name));
  return `${safe(kind)}/${safe(election)}`;
}

export interface Snippet {
  title: string;
  text: string;
  note?: string;
}

export function snippets(base: string, kind: string, election: string, authentication: boolean): Snippet[] {
  const url = new URL(base);
  const address = url.pathname === "/" ? url.origin : base;
  const name = `--election=${shell(election)}`;
  const path = pathOf(kind, election);
  const header = authentication ? ` \\\n  -H "authorization: Bearer $TOKEN"` : "";
  const eactl =
    `export ELECTION_AGENT_URL=${shell(address)}\n` +
    (authentication ? "export ELECTION_AGENT_TOKEN_FILE=/path/to/token\n" : "") +
    `eactl run --kind=${shell(kind)} ${name} -- ./your-command`;
  const curl =
    `curl -s ${shell(`${base}election/${path}`)}${header} \\\n` +
    `  -H 'content-type: application/json' \\\n` +
    `  -d '{"candidate": "worker-1", "term": 15000}'`;
  const encrypted = url.protocol === "https:";
  // The Python client sends no token without encryption unless it is told to.
  const credentials = authentication ? `, token_file="/path/to/token"${encrypted ? "" : ", allow_plaintext_token=True"}` : "";
  const py =
    "from election_agent_client import SyncAgent  # pip install election-agent-client\n\n" +
    `with SyncAgent(${python(address)}${credentials}) as agent, agent.lead(${python(election)}, kind=${python(kind)}) as term:\n` +
    "    do_some_work(term)  # whatever stores it compares term.token; term.check() raises when another may lead";
  const ts =
    'import { Agent } from "@election-agent/client"; // npm install @election-agent/client\n' +
    `const agent = new Agent(${javascript(address)}${authentication ? ', { tokenFile: "/path/to/token" }' : ""});\n` +
    `await agent.lead(${javascript(election)}, { kind: ${javascript(kind)} }, async (term) => doSomeWork(term.token, term.signal));`;
  const pathNote = url.pathname === "/" ? {} : { note: "gRPC knows no path prefix: give the agent's own address, without the proxy's." };
  return [
    { title: "eactl", text: eactl, ...pathNote },
    { title: "Python", text: py, ...pathNote },
    { title: "TypeScript", text: ts, ...pathNote },
    { title: "curl", text: curl },
  ];
}
