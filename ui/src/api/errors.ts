import { Code, ConnectError } from "@connectrpc/connect";

/** Why a call failed, as far as the page behaves differently. */
export type Trouble =
  | "unauthenticated"
  | "forbidden"
  | "unimplemented"
  | "not found"
  | "invalid"
  | "exhausted"
  | "unavailable"
  | "unreachable"
  | "canceled"
  | "failed";

/** A failed call, for people. */
export interface Failure {
  trouble: Trouble;
  /** What it means, in a sentence. */
  summary: string;
  /** What the agent said; may be empty. */
  detail: string;
}

const SUMMARIES: Record<Trouble, string> = {
  unauthenticated: "The agent does not know who you are.",
  forbidden: "The agent knows who you are, but its policies do not permit this.",
  unimplemented: "This agent does not offer this.",
  "not found": "The agent knows nothing of that name.",
  invalid: "The agent does not accept this request.",
  exhausted: "A limit is reached.",
  unavailable: "The agent could not answer: no quorum of lease nodes, or it is not ready.",
  unreachable: "The agent cannot be reached.",
  canceled: "Canceled.",
  failed: "The agent failed to answer.",
};

function troubleOf(code: Code): Trouble {
  switch (code) {
    case Code.Unauthenticated:
      return "unauthenticated";
    case Code.PermissionDenied:
      return "forbidden";
    case Code.Unimplemented:
      return "unimplemented";
    case Code.NotFound:
      return "not found";
    case Code.InvalidArgument:
      return "invalid";
    case Code.ResourceExhausted:
      return "exhausted";
    case Code.Unavailable:
    case Code.DeadlineExceeded:
      return "unavailable";
    case Code.Canceled:
      return "canceled";
    default:
      return "failed";
  }
}

/** Says what a call's error means. */
export function failureOf(error: unknown): Failure {
  if (error instanceof ConnectError) {
    // What the agent answers has a status. `fetch` fails with a TypeError, and a response that was cut with a text.
    const cause: unknown = error.cause;
    const network = cause instanceof TypeError || typeof cause === "string";
    const trouble: Trouble = network ? "unreachable" : troubleOf(error.code);
    return { trouble, summary: SUMMARIES[trouble], detail: error.rawMessage };
  }
  if (error instanceof TypeError) return { trouble: "unreachable", summary: SUMMARIES.unreachable, detail: error.message };
  if (error instanceof DOMException && error.name === "AbortError") {
    return { trouble: "canceled", summary: SUMMARIES.canceled, detail: "" };
  }
  const detail = error instanceof Error ? error.message : String(error);
  return { trouble: "failed", summary: SUMMARIES.failed, detail };
}

/** A failure in one line. */
export function inWords(failure: Failure): string {
  return failure.detail === "" ? failure.summary : `${failure.summary} (${failure.detail})`;
}
