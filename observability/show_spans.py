"""Receives traces over OTLP and prints them, to see them without a tracing backend.

    python3 -m venv /tmp/show-spans
    /tmp/show-spans/bin/pip install grpcio opentelemetry-proto
    /tmp/show-spans/bin/python observability/show_spans.py

listens on 127.0.0.1, port 4317 for gRPC and 4318 for HTTP (protobuf); other ports as two arguments, 0 for any
free one. It keeps nothing and has no limits: it is for a developer's machine.
"""

import gzip
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def value(any_value):
    """An attribute's value as text."""
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return "[" + ", ".join(value(item) for item in any_value.array_value.values) + "]"
    return str(getattr(any_value, kind)) if kind else ""


def attributes(of):
    return "".join(f" {one.key}={value(one.value)}" for one in of.attributes)


def lines(span, children, depth):
    """A span, its events, and below it its child spans."""
    indent = "  " * depth
    took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
    failed = f" FAILED {span.status.message}" if span.status.code == Status.STATUS_CODE_ERROR else ""
    yield f"{indent}{span.name} ({kind}, {took:.3f} ms){failed}{attributes(span)}"
    for event in span.events:
        after = (event.time_unix_nano - span.start_time_unix_nano) / 1e6
        yield f"{indent}  + {after:.3f} ms: {event.name}{attributes(event)}"
    for child in children.get(span.span_id, []):
        yield from lines(child, children, depth + 1)


def show(request):
    """Prints the spans of one message, a paragraph for each trace."""
    spans = [
        span
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    spans.sort(key=lambda span: span.start_time_unix_nano)
    traces, children = {}, {}
    known = {span.span_id for span in spans}
    for span in spans:
        if span.parent_span_id in known:
            children.setdefault(span.parent_span_id, []).append(span)
        else:
            # A parent of the caller's, or one that comes later.
            traces.setdefault(span.trace_id, []).append(span)
    for trace, roots in traces.items():
        text = [f"trace {trace.hex()}"]
        for root in roots:
            text += lines(root, children, 1)
        # In one piece, because both servers print.
        print("\n".join(text) + "\n", flush=True)


class Grpc(rpc.TraceServiceServicer):
    def Export(self, request, context):
        show(request)
        return service.ExportTraceServiceResponse()


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/v1/traces":
            return self.answer(404, b"")
        if self.headers.get_content_type() != "application/x-protobuf":
            return self.answer(415, b"")
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        show(service.ExportTraceServiceRequest.FromString(body))
        self.answer(200, service.ExportTraceServiceResponse().SerializeToString())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Suppresses the line for every message."""


def main():
    grpc_port, http_port = (int(port) for port in (sys.argv[1:] or ["4317", "4318"]))
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    rpc.add_TraceServiceServicer_to_server(Grpc(), server)
    grpc_port = server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    http = ThreadingHTTPServer(("127.0.0.1", http_port), Http)
    server.start()
    print(f"waiting for spans on 127.0.0.1:{grpc_port} (gRPC) and :{http.server_port} (HTTP)", flush=True)
    try:
        http.serve_forever()
    except KeyboardInterrupt:
        server.stop(grace=None)


if __name__ == "__main__":
    main()
