import { create } from "@bufbuild/protobuf";
import {
  type Pod,
  PodSchema,
  type State,
  StateSchema,
  State_Cause,
  State_Phase,
} from "@election-agent/client/proto";

export function held(
  kind: string,
  election: string,
  token: number,
  name: string,
  more: { remaining?: number; cause?: State_Cause; missed?: boolean; value?: string } = {},
): State {
  return create(StateSchema, {
    kind,
    election,
    phase: State_Phase.HELD,
    token: BigInt(token),
    cause: more.cause ?? State_Cause.PRESENT,
    position: `h${token}`,
    missed: more.missed ?? false,
    leader: { kind, election, name, token: BigInt(token), remaining: more.remaining ?? 10_000, value: more.value ?? "", electedAt: 1n },
  });
}

export function vacant(kind: string, election: string, token: number, cause: State_Cause): State {
  return create(StateSchema, { kind, election, phase: State_Phase.VACANT, token: BigInt(token), cause, position: `v${token}` });
}

export function pod(name: string, set: string, revision: number, ready: boolean, available: number, desired: number): Pod {
  return create(PodSchema, {
    name,
    deployment: "d",
    status: { phase: "Running", podReady: ready },
    replicaSet: { name: set, revision, availableReplicas: available, desiredReplicas: desired },
  });
}
