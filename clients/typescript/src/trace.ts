type Api = typeof import("@opentelemetry/api");

let api: Promise<Api | undefined> | undefined;

/** @internal Propagates the current trace context, if the process has OpenTelemetry. */
export async function putTrace(headers: Headers): Promise<void> {
  // Bundlers that insist on all that is imported leave it to the runtime.
  api ??= import(/* webpackIgnore: true */ "@opentelemetry/api").then(
    (found) => found,
    () => undefined,
  );
  const found = await api;
  try {
    found?.propagation.inject(found.context.active(), headers, { set: (carrier, key, value) => carrier.set(key, value) });
  } catch {
    // A propagator that fails costs a trace, and no leadership.
  }
}
