import { useState } from "preact/hooks";
import { theApi } from "../api/client";
import type { Limit } from "@election-agent/client/proto";
import { usePoll } from "../live/hooks";
import { Trouble } from "../parts/notices";
import { Name } from "../parts/text";
import { Time, duration } from "../parts/time";

const LINKS: [string, string][] = [
  ["metrics", "Metrics"],
  ["swagger-ui/", "API documentation (Swagger UI)"],
  ["openapi.json", "OpenAPI document"],
  ["readyz", "Readiness"],
];

const SOURCES: Record<string, string> = { flag: "command line" };

export function AgentPage() {
  const agent = usePoll((api, signal) => api.agent.getAgent({}, { signal }), 5_000, []);
  const configuration = usePoll(async (api, signal) => (await api.agent.getConfiguration({}, { signal })).settings, 60_000, []);
  const [filter, setFilter] = useState("");
  const [changedOnly, setChangedOnly] = useState(false);
  const value = agent.value;
  const wanted = filter.trim().toLowerCase();
  const settings = (configuration.value ?? []).filter(
    (setting) =>
      (!changedOnly || setting.source !== "default") &&
      `${setting.variable} ${setting.meaning}`.toLowerCase().includes(wanted),
  );
  return (
    <section class="page" aria-labelledby="title">
      <div class="bar">
        <h1 id="title" tabIndex={-1}>
          Agent
        </h1>
        {value !== undefined && (
          <span class={`badge ${value.ready ? "good" : "bad"}`}>{value.ready ? "ready" : "not ready"}</span>
        )}
      </div>
      <div class="notices" role="status">
        {agent.failure !== undefined && <Trouble failure={agent.failure} what="The agent's own state" />}
        {value !== undefined && !value.ready && <div class="notice warning">It takes no requests: <Name text={value.reason} /></div>}
      </div>
      <div class="cards">
        {value !== undefined && (
          <section class="card" aria-labelledby="about-title">
            <h2 id="about-title">About</h2>
            <dl>
              <dt>Name</dt>
              <dd>
                <Name text={value.name} />
              </dd>
              <dt>Version</dt>
              <dd>
                {value.version}
                {value.commit !== "" && value.commit !== "unknown" && <span class="faint"> ({value.commit})</span>}
              </dd>
              <dt>Started</dt>
              <dd>
                <Time at={Number(value.startedAt)} /> <span class="faint">({duration(Number(value.uptime))} ago)</span>
              </dd>
              <dt>Configuration</dt>
              <dd class="token" title="Equal on agents with the same settings">
                {value.configuration}
              </dd>
              <dt>Longest term</dt>
              <dd>{duration(Number(value.maxTerm))}</dd>
              <dt>Kubernetes pods</dt>
              <dd>{value.pods ? "looked up" : "not looked up"}</dd>
              <dt>You are</dt>
              <dd>
                <Name text={value.caller} /> {!value.authentication && <span class="faint">(the agent asks nobody who they are)</span>}
              </dd>
            </dl>
          </section>
        )}
        {value !== undefined && (
          <section class="card" aria-labelledby="limits-title">
            <h2 id="limits-title">Limits</h2>
            {value.limits.map((limit) => (
              <LimitBar key={limit.setting} limit={limit} />
            ))}
          </section>
        )}
        <section class="card" aria-labelledby="links-title">
          <h2 id="links-title">More</h2>
          <ul>
            {LINKS.map(([path, title]) => (
              <li key={path}>
                <a href={new URL(path, theApi().base).href} target="_blank" rel="noopener noreferrer">
                  {title}
                </a>
              </li>
            ))}
          </ul>
        </section>
      </div>
      <section class="card" aria-labelledby="settings-title">
        <h2 id="settings-title">Configuration in force</h2>
        {configuration.failure !== undefined && (
          <Trouble
            failure={configuration.failure}
            {...(configuration.failure.trouble === "forbidden" ? { what: "Only for callers that may administer the agent" } : {})}
          />
        )}
        {configuration.value !== undefined && (
          <>
            <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
              <label>
                Find
                <input type="search" value={filter} autoComplete="off" onInput={(event) => setFilter(event.currentTarget.value)} />
              </label>
              <label class="check">
                <input type="checkbox" checked={changedOnly} onChange={(event) => setChangedOnly(event.currentTarget.checked)} />
                only what is not the default
              </label>
            </form>
            <div class="scroll-x" tabIndex={0} role="region" aria-label="Settings">
              <table class="settings">
                <thead>
                  <tr>
                    <th scope="col">Variable</th>
                    <th scope="col">Value</th>
                    <th scope="col">From</th>
                    <th scope="col">Meaning</th>
                  </tr>
                </thead>
                <tbody>
                  {settings.map((setting) => (
                    <tr key={setting.variable}>
                      <td>
                        <code>{setting.variable}</code>
                      </td>
                      <td>{setting.value === "" ? <span class="faint">–</span> : <Name text={setting.value} />}</td>
                      <td>{SOURCES[setting.source] ?? setting.source}</td>
                      <td class="meaning">{setting.meaning}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </>
        )}
      </section>
    </section>
  );
}

function LimitBar({ limit }: { limit: Limit }) {
  const used = Number(limit.used);
  const most = Number(limit.limit);
  const share = most > 0 ? Math.min(1, used / most) : 0;
  return (
    <div class="limit">
      <div class="limit-head">
        <span>
          <code>{limit.setting}</code> <span class="faint">{limit.counts}</span>
        </span>
        <span>
          {used.toLocaleString()} of {most > 0 ? most.toLocaleString() : "unlimited"}
        </span>
      </div>
      <span class="track" role="img" aria-label={`${Math.round(share * 100)} % used`}>
        <span class="fill" data-level={share > 0.8 ? "low" : ""} style={{ transform: `scaleX(${share.toFixed(3)})` }} />
      </span>
    </div>
  );
}
