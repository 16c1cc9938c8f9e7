import { signal } from "@preact/signals";

/** A place in the page, from the URL's fragment. */
export type Route =
  | { page: "elections"; kind: string | undefined; prefix: string; show: "all" | "held" | "vacant"; order: "name" | "change" }
  | { page: "election"; kind: string; election: string }
  | { page: "nodes" }
  | { page: "pods"; namespace: string; deployment: string }
  | { page: "agent" }
  | { page: "unknown" };

function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

/** Reads a fragment, with or without "#". */
export function parseRoute(fragment: string): Route {
  const text = fragment.replace(/^#/, "");
  const mark = text.indexOf("?");
  const path = mark < 0 ? text : text.slice(0, mark);
  const query = new URLSearchParams(mark < 0 ? "" : text.slice(mark + 1));
  const parts = path.split("/").filter((part) => part !== "");
  if (parts.length === 0 || (parts.length === 1 && parts[0] === "elections")) {
    const show = query.get("show");
    return {
      page: "elections",
      kind: query.get("kind") ?? undefined,
      prefix: query.get("prefix") ?? "",
      show: show === "held" || show === "vacant" ? show : "all",
      order: query.get("order") === "change" ? "change" : "name",
    };
  }
  if (parts.length === 3 && parts[0] === "elections") {
    const kind = decoded(parts[1]!);
    const election = decoded(parts[2]!);
    if (kind !== undefined && election !== undefined) return { page: "election", kind, election };
  }
  if (parts.length === 1) {
    if (parts[0] === "nodes" || parts[0] === "agent") return { page: parts[0] };
    if (parts[0] === "pods") {
      return { page: "pods", namespace: query.get("namespace") ?? "", deployment: query.get("deployment") ?? "" };
    }
  }
  return { page: "unknown" };
}

/** The fragment of a place. */
export function hrefOf(route: Route): string {
  const query = new URLSearchParams();
  switch (route.page) {
    case "elections":
      if (route.kind !== undefined) query.set("kind", route.kind);
      if (route.prefix !== "") query.set("prefix", route.prefix);
      if (route.show !== "all") query.set("show", route.show);
      if (route.order !== "name") query.set("order", route.order);
      break;
    case "election":
      return `#/elections/${encodeURIComponent(route.kind)}/${encodeURIComponent(route.election)}`;
    case "pods":
      if (route.namespace !== "") query.set("namespace", route.namespace);
      if (route.deployment !== "") query.set("deployment", route.deployment);
      break;
    default:
      break;
  }
  const text = query.toString();
  return `#/${route.page === "unknown" ? "elections" : route.page}${text === "" ? "" : `?${text}`}`;
}

/** Where the page is. */
export const route = signal<Route>(parseRoute(location.hash));

/** Goes to a place without a new entry in the history, as filters change with each key. */
export function replaceRoute(next: Route): void {
  history.replaceState(history.state, "", hrefOf(next));
  route.value = next;
}

/** Goes to a place. */
export function goTo(next: Route): void {
  location.hash = hrefOf(next);
}

window.addEventListener("hashchange", () => {
  route.value = parseRoute(location.hash);
});
