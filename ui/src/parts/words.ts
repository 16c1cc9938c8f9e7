import { State_Cause } from "@election-agent/client/proto";

/** Why an election is vacant. */
export function vacancy(cause: State_Cause, leader: string): string {
  switch (cause) {
    case State_Cause.RESIGN:
      return leader === "" ? "the leader resigned" : "resigned:";
    case State_Cause.EXPIRY:
      return leader === "" ? "the leader's term ended" : "term ended:";
    case State_Cause.ROLLED_BACK:
      return "a grant that came too late was rolled back";
    case State_Cause.PRESENT:
    case State_Cause.CAUSE_UNSPECIFIED:
      return leader === "" ? "nobody leads" : "not seen why; before:";
    default:
      return leader === "" ? "nobody leads" : "before:";
  }
}

/** What happened, of a change. */
export function change(held: boolean, cause: State_Cause): string {
  switch (cause) {
    case State_Cause.CAMPAIGN:
      return "elected";
    case State_Cause.RESIGN:
      return "resigned";
    case State_Cause.HANDOVER:
      return "handed over to";
    case State_Cause.EXPIRY:
      return "term ended";
    case State_Cause.ROLLED_BACK:
      return held ? "leads again: a grant that came too late was rolled back" : "vacant again: a grant was rolled back";
    default:
      return held ? "was led by" : "was vacant";
  }
}

/** Why a resignation or handover did nothing. */
export function refusal(reason: string): string {
  switch (reason) {
    case "NO_TERM":
      return "Nothing was changed: the election is vacant, the term is over already.";
    case "HELD_BY_OTHER":
      return "Nothing was changed: another candidate leads by now.";
    case "STALE_TOKEN":
      return "Nothing was changed: the leader has another token by now. Look again, and decide again.";
    default:
      return `Nothing was changed: ${reason === "" ? "the agent gave no reason" : reason}.`;
  }
}

export function plural(count: number, one: string, many: string = `${one}s`): string {
  return `${count.toLocaleString()} ${count === 1 ? one : many}`;
}
