/** How to lead an election with this agent, for people to copy. Names may be anything: each is quoted for its language. */

// Letters and marks of any script may stand in quotes as they are. Everything else outside ASCII may not look like what it is.
const PLAIN = /^[\u0020-\u007e\p{L}\p{M}\p{N}]*$/u;

function escapes(text: string, extra: string): string {
  let result = "";
  for (const character of text) {
    const code = character.codePointAt(0)!;
    if (extra.includes(character)) result += `\\${character}`;
    else if (PLAIN.test(character)) result += character;
    else if (code > 0xffff) result += `\\U${code.toString(16).padStart(8, "0")}`;
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
  const py = `import json, os, time, urllib.request

URL = ${python(`${base}election/${path}`)}
HEADERS = {"content-type": "application/json"${authentication ? ', "authorization": "Bearer " + os.environ["TOKEN"]' : ""}}
ME = os.uname().nodename + "-" + str(os.getpid())

def ask(method, **body):
    request = urllib.request.Request(URL, json.dumps(body).encode(), HEADERS, method=method)
    with urllib.request.urlopen(request, timeout=5) as response:
        return json.load(response)

# Waits up to 30 s to be elected. \`valid_for\` counts from before the request was sent.
asked = time.monotonic()
term = None
while term is None or not term["elected"]:
    asked = time.monotonic()
    try:
        term = ask("POST", candidate=ME, term=15000)
    except OSError:
        pass  # not known: ask again
    if term is None or not term["elected"]:
        time.sleep(1)
until = asked + term["valid_for"] / 1000
while time.monotonic() < until:
    do_some_work(term["token"])  # shorter than a few seconds; whatever stores it compares tokens
    asked = time.monotonic()
    try:
        answer = ask("PATCH", leader=ME, term=15000, token=term["token"])
    except OSError:
        continue  # not known: there is time until \`until\`
    if not answer["value"]:
        break  # somebody else may lead
    until = max(until, asked + answer["valid_for"] / 1000)`;
  const pathNote =
    url.pathname === "/" ? {} : { note: "gRPC knows no path prefix: give eactl the agent's own address, without the proxy's." };
  return [
    { title: "eactl", text: eactl, ...pathNote },
    { title: "Python", text: py.replace("# Waits up to 30 s to be elected. ", "# Asks until it is elected. ") },
    { title: "curl", text: curl },
  ];
}
