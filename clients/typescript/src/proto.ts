// The generated code, of the repository's proto/election_agent/v1/election_agent.proto.
export * from "./gen/election_agent/v1/election_agent_pb.js";
