"""Asks an agent everything over gRPC with grpcio, whose C core is that of many languages' clients.

Prints one JSON line for each case, and fails if one did. tests/integration/clients.rs runs it; by hand:

    target/test-tools/python/bin/python tests/clients/grpcio_client.py --target localhost:8443
"""

import argparse
import json
import pathlib
import sys
import tempfile
import traceback
import uuid

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
SERVICE = "grpc.election_agent.v1.Election"
TERM = 30_000
# Elections of this run alone, so that it can be run again.
KIND = f"grpcio-{uuid.uuid4().hex}"


def generate():
    """The messages and the stub, made from the .proto as any client makes them."""
    with tempfile.TemporaryDirectory() as directory:
        source = "election_agent/v1/election_agent.proto"
        out = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
        if protoc.main(["protoc", f"-I{PROTO}", *out, source]) != 0:
            sys.exit("protoc refuses the .proto")
        sys.path.insert(0, directory)
        from election_agent.v1 import election_agent_pb2, election_agent_pb2_grpc
    return election_agent_pb2, election_agent_pb2_grpc.ElectionStub


pb, Stub = generate()


class Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
             grpc.StreamStreamClientInterceptor):
    """Sends a token with every call; grpcio's own credentials for calls want TLS."""

    def __init__(self, token):
        self.token = token

    def with_token(self, proceed, details, request):
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self.token}")]
        return proceed(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_stream = with_token


def connect(options):
    """The channel: TLS if an authority is given, with a client certificate if that is."""
    read = lambda path: pathlib.Path(path).read_bytes() if path else None
    if options.ca:
        credentials = grpc.ssl_channel_credentials(read(options.ca), read(options.key), read(options.cert))
        channel = grpc.secure_channel(options.target, credentials)
    else:
        channel = grpc.insecure_channel(options.target)
    return grpc.intercept_channel(channel, Bearer(options.token)) if options.token else channel


def refused(code, says, call, request, **how):
    """Makes a call that must fail so, and returns its trailers."""
    try:
        answer = call(request, **how)
        raise AssertionError(f"answered, not {code}: {answer}")
    except grpc.RpcError as error:
        assert error.code() is code, error
        assert says in error.details(), error.details()
        return dict(error.trailing_metadata())


class Cases:
    """Each method is a case; they run in this order, each on what the ones before have left."""

    def __init__(self, channel, prefix=""):
        self.channel = channel
        # Who campaigns: an agent may let its caller act for candidates of its own alone.
        self.a, self.b = f"{prefix}a", f"{prefix}b"
        self.election = Stub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def __iter__(self):
        for of in reversed(type(self).__mro__):
            yield from (name for name in vars(of) if of is not object and not name.startswith("_"))

    def health_check(self):
        for service in ["", "liveness", "readiness", SERVICE]:
            answer = self.health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)


class Everything(Cases):
    """What somebody meets who may ask."""

    def campaign(self):
        request = pb.CampaignRequest(election="e", kind=KIND, candidate=self.a, term=TERM, value="here: ä",
                                     request_id="1")
        self.won, call = self.election.Campaign.with_call(request)
        assert (self.won.elected, self.won.leader, self.won.kind) == (True, self.a, KIND), self.won
        assert self.won.value == "here: ä" and 0 < self.won.valid_for < TERM, self.won
        assert 0 < self.won.token < 2**53, self.won
        assert "x-request-id" in dict(call.initial_metadata())

    def campaign_again_with_the_same_id(self):
        request = pb.CampaignRequest(election="e", kind=KIND, candidate=self.a, term=TERM, request_id="1")
        assert self.election.Campaign(request).token == self.won.token

    def campaign_lost(self):
        lost = self.election.Campaign(pb.CampaignRequest(election="e", kind=KIND, candidate=self.b, term=TERM))
        assert (lost.elected, lost.leader, lost.token) == (False, self.a, self.won.token), lost
        assert lost.valid_for == 0, lost

    def get_leader(self):
        assert self.election.GetLeader(pb.GetLeaderRequest(election="e", kind=KIND)).value == self.a

    def list_leaders(self):
        other = pb.CampaignRequest(election="f", kind=KIND, candidate=self.b, term=TERM)
        assert self.election.Campaign(other).elected
        found, token = [], ""
        while not found or token:
            page = self.election.ListLeaders(pb.ListLeadersRequest(kind=KIND, page_size=1, page_token=token))
            found += [(leader.election, leader.name) for leader in page.leaders]
            token = page.next_page_token
        assert sorted(found) == [("e", self.a), ("f", self.b)], found

    def extend_elected_term(self):
        request = pb.ExtendElectedTermRequest(election="e", kind=KIND, leader=self.a, term=TERM,
                                              token=self.won.token, retries=1, retry_interval=10)
        assert self.election.ExtendElectedTerm(request).value

    def extend_refused(self):
        request = pb.ExtendElectedTermRequest(election="e", kind=KIND, leader=self.b, term=TERM)
        answer = self.election.ExtendElectedTerm(request)
        assert (answer.value, answer.reason) == (False, "HELD_BY_OTHER"), answer

    def handover(self):
        request = pb.HandoverRequest(election="e", kind=KIND, leader=self.b, term=TERM, current_leader=self.a,
                                     token=self.won.token)
        assert self.election.Handover(request).value

    def resign(self):
        stale = pb.ResignRequest(election="e", kind=KIND, leader=self.b, token=self.won.token)
        assert self.election.Resign(stale).reason == "STALE_TOKEN"
        assert self.election.Resign(pb.ResignRequest(election="e", kind=KIND, leader=self.b)).value
        again = self.election.Resign(pb.ResignRequest(election="e", kind=KIND, leader=self.b))
        assert (again.value, again.reason) == (False, "NO_TERM"), again

    def get_leader_of_a_vacant_election(self):
        trailers = refused(grpc.StatusCode.NOT_FOUND, "vacant", self.election.GetLeader,
                           pb.GetLeaderRequest(election="e", kind=KIND))
        assert len(trailers["x-request-id"]) == 32, trailers

    def get_pods(self):
        refused(grpc.StatusCode.UNIMPLEMENTED, "does not look up pods", self.election.GetPods,
                pb.GetPodsRequest(namespace="n", deployment="d"))

    def invalid_argument(self):
        request = pb.CampaignRequest(election="e", kind=KIND, candidate=self.a, term=5)
        trailers = refused(grpc.StatusCode.INVALID_ARGUMENT, "`term` is 5: give 1000 to",
                           self.election.Campaign, request, metadata=[("x-request-id", "mine")])
        assert trailers["x-request-id"] == "mine", trailers

    def unknown_method(self):
        abdicate = self.channel.unary_unary(f"/{SERVICE}/Abdicate",
                                            request_serializer=pb.Empty.SerializeToString,
                                            response_deserializer=pb.Empty.FromString)
        refused(grpc.StatusCode.UNIMPLEMENTED, "", abdicate, pb.Empty())

    def too_large(self):
        request = pb.CampaignRequest(election="e", kind=KIND, candidate=self.a, term=TERM, value="v" * 70_000)
        refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "over 65536 bytes", self.election.Campaign, request)

    def deadline(self):
        # A call without an end, so that no machine is fast enough to answer it whole.
        watch = lambda request, **how: list(self.health.Watch(request, **how))
        refused(grpc.StatusCode.DEADLINE_EXCEEDED, "", watch, health_pb2.HealthCheckRequest(),
                timeout=0.001)

    def health_check_of_nothing(self):
        refused(grpc.StatusCode.NOT_FOUND, "", self.health.Check,
                health_pb2.HealthCheckRequest(service="nothing"))

    def health_watch(self):
        watch = self.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()

    def reflection(self):
        reflected = ProtoReflectionDescriptorDatabase(self.channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(reflected.get_services())
        file = reflected.FindFileContainingSymbol(SERVICE)
        methods = {method.name for method in file.service[0].method}
        assert methods == {method.name for method in pb.DESCRIPTOR.services_by_name["Election"].methods}


class Unauthenticated(Cases):
    """What somebody meets who has to prove who they are, and does not."""

    def every_rpc(self):
        for method in pb.DESCRIPTOR.services_by_name["Election"].methods:
            request = getattr(pb, method.input_type.name)()
            refused(grpc.StatusCode.UNAUTHENTICATED, "", getattr(self.election, method.name), request)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--ca", help="PEM file of the agent's authority; none: no TLS")
    parser.add_argument("--cert", help="PEM file of a client certificate")
    parser.add_argument("--key", help="PEM file of its key")
    parser.add_argument("--token", help="bearer token")
    parser.add_argument("--candidate-prefix", default="",
                        help="what the candidates' names begin with: who the caller is, and a slash")
    parser.add_argument("--expect-unauthenticated", action="store_true",
                        help="every RPC must be UNAUTHENTICATED; health must answer")
    options = parser.parse_args()
    failed = False
    channel = connect(options)
    cases = (Unauthenticated if options.expect_unauthenticated else Everything)(channel, options.candidate_prefix)
    for name in cases:
        try:
            getattr(cases, name)()
            error = ""
        except Exception:
            error, failed = traceback.format_exc(), True
        print(json.dumps({"case": name, "error": error}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
