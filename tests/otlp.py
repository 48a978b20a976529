"""A receiver of OpenTelemetry's protocol (OTLP over HTTP), for tests that look at what is exported."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_KINDS = {"/v1/metrics": ExportMetricsServiceRequest, "/v1/traces": ExportTraceServiceRequest}


class Receiver:
    """What has come, as it was sent; `status` is what is answered."""

    def __init__(self):
        self.received = []
        self.headers = []
        self.status = 200

    def of(self, kind):
        """The requests of one kind: `metrics` or `traces`."""
        return [request for request in self.received if isinstance(request, _KINDS[f"/v1/{kind}"])]


@contextmanager
def receiver():
    """Receives for the time of the block, on a free port; `url` is the endpoint."""
    here = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            here.headers.append(dict(self.headers))
            here.received.append(_KINDS[self.path].FromString(body))
            self.send_response(here.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    here.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(pairs):
    """OTLP's attributes as a dict."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def points(requests):
    """The data points of metrics: `{(name, resource and point attributes): point}`; the last one of each."""
    found = {}
    for request in requests:
        for resource in request.resource_metrics:
            whose = attributes(resource.resource.attributes)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in getattr(metric, metric.WhichOneof("data")).data_points:
                        labels = attributes(point.attributes)
                        found[metric.name, whose["service.name"], frozenset(labels.items())] = point
    return found
