import { useEffect, useRef } from "preact/hooks";
import { agentInfo } from "./agent-info";
import { forgetToken, session, token, tokenWanted } from "./api/client";
import { AgentPage } from "./pages/agent";
import { ElectionPage } from "./pages/election";
import { ElectionsPage } from "./pages/elections";
import { LoginPage } from "./pages/login";
import { NodesPage } from "./pages/nodes";
import { PodsPage } from "./pages/pods";
import { Name, visible } from "./parts/text";
import { type Route, route } from "./route";

const TABS: [Route["page"], string, string][] = [
  ["elections", "#/elections", "Elections"],
  ["nodes", "#/nodes", "Nodes"],
  ["pods", "#/pods", "Pods"],
  ["agent", "#/agent", "Agent"],
];

function titleOf(place: Route): string {
  switch (place.page) {
    case "election":
      return visible(`${place.election} (${place.kind})`);
    case "unknown":
      return "Not found";
    default:
      return TABS.find(([page]) => page === place.page)?.[2] ?? "";
  }
}

function Page({ place }: { place: Route }) {
  switch (place.page) {
    case "elections":
      return <ElectionsPage place={place} />;
    case "election":
      return <ElectionPage key={`${place.kind}/${place.election}`} kind={place.kind} election={place.election} />;
    case "nodes":
      return <NodesPage />;
    case "pods":
      return <PodsPage place={place} />;
    case "agent":
      return <AgentPage />;
    default:
      return (
        <section class="page">
          <h1 id="title" tabIndex={-1}>
            Not found
          </h1>
          <p>
            There is no such page. <a href="#/elections">See the elections.</a>
          </p>
        </section>
      );
  }
}

export function App() {
  const place = route.value;
  const main = useRef<HTMLElement>(null);
  const shownBefore = useRef("");
  const asking = tokenWanted.value !== undefined;
  const identity = asking ? "login" : place.page === "election" ? `${place.kind}/${place.election}` : place.page;
  const title = asking ? "Who are you?" : titleOf(place);
  useEffect(() => {
    document.title = `${title} – Election Agent`;
    // A page that was gone to is announced by its heading. The first one is the browser's to announce.
    if (shownBefore.current !== "" && shownBefore.current !== identity && !asking) {
      main.current?.querySelector<HTMLElement>("h1")?.focus();
    }
    shownBefore.current = identity;
  }, [identity, title]);
  const info = agentInfo.value;
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          main.current?.focus();
        }}
      >
        Skip to the content
      </a>
      <header>
        <a class="brand" href="#/elections">
          Election Agent
        </a>
        <nav aria-label="Pages">
          {TABS.map(([page, href, title]) => (
            <a
              key={page}
              href={href}
              aria-current={place.page === page || (place.page === "election" && page === "elections") ? "page" : undefined}
            >
              {title}
            </a>
          ))}
        </nav>
        <span class="who">
          {info !== undefined && (
            <span class="agent-name">
              <Name text={info.name} /> {info.version}
            </span>
          )}
          {token.value !== "" && (
            <button type="button" onClick={forgetToken}>
              Forget token
            </button>
          )}
        </span>
      </header>
      <main id="main" ref={main} tabIndex={-1} key={session.value}>
        {asking ? <LoginPage /> : <Page place={place} />}
      </main>
    </>
  );
}
