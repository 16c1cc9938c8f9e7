/**
 * Derives the API's base URL, which ends in "/".
 *
 * @param page the page's URL
 * @param configured the content of `<meta name="election-agent-api">`: for a page from another origin; empty for a page
 *   that the agent serves, at `ui/` below the API
 */
export function apiBase(page: string, configured: string): string {
  const url = configured.trim() === "" ? new URL(page) : new URL(configured.trim(), page);
  url.search = "";
  url.hash = "";
  if (configured.trim() === "") {
    url.pathname = url.pathname.replace(/[^/]*$/, "").replace(/(^|\/)ui\/$/, "$1");
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url.href;
}

/** The base URL of this page's API. */
export function apiBaseOfDocument(): string {
  const meta = document.querySelector<HTMLMetaElement>('meta[name="election-agent-api"]');
  return apiBase(document.baseURI, meta?.content ?? "");
}
