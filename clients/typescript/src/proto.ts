/**
 * The generated code, of the repository's proto/election_agent/v1/election_agent.proto: messages and services, for
 * callers of RPCs that the client does not have.
 *
 * @packageDocumentation
 * @module proto
 */

export * from "./gen/election_agent/v1/election_agent_pb.js";
