"""NATS servers of every kind of connection, for tests of the way that messages take through them."""

import contextlib
import re
import time

from meshkit.transport.server import EmbeddedServer

PASSWORD = "secret"

ACCOUNTS = """
accounts {
  A {
    users: [
      { user: ann, password: secret }
      { user: bob, password: secret, permissions: { publish: { deny: ["secret.>"] } } }
      { user: cid, password: secret, permissions: { publish: { allow: ["hello"] } } }
      { user: dan, password: secret, permissions: { publish: { deny: ["trace.A"] } } }
    ]
    mappings: { "old.hello": "hello" }
    imports: [
      { service: { account: B, subject: "sum.add" }, to: "add" }
      { service: { account: B, subject: "sum.hidden" } }
      { stream: { account: B, subject: "ticker" }, allow_trace: true }
    ]
    msg_trace: { dest: "trace.A", sampling: "100%" }
  }
  B {
    users: [{ user: eve, password: secret }]
    exports: [
      { service: "sum.add", allow_trace: true, latency: { sampling: headers, subject: "latency.add" } }
      { service: "sum.hidden", latency: { sampling: "100%", subject: "latency.hidden" } }
      { stream: "ticker" }
    ]
  }
  SYS { users: [{ user: sys, password: secret }] }
}
system_account: SYS
"""


class Network:
    """s0, s1 and s2 are a cluster; `leaf`, which has JetStream, hangs on s2; `far` is another cluster."""

    def __init__(self, folder, stack):
        self._folder = folder
        self._stack = stack
        self.routers = []
        routes, gateways, leafnodes = "", "", ""
        for number in range(3):
            server, said = self._start(
                f"s{number}",
                f"cluster {{ name: near, listen: '127.0.0.1:-1', routes: [{routes}] }}\n"
                "gateway { name: near, listen: '127.0.0.1:-1' }\n"
                f"leafnodes {{ listen: '127.0.0.1:-1' }}\n{ACCOUNTS}",
            )
            routes = routes or f"nats://{said('route')}"
            gateways = gateways or f"nats://{said('gateway')}"
            leafnodes = f"nats://ann:{PASSWORD}@{said('leafnode')}"
            self.routers.append(server)
        self.far, _ = self._start(
            "far",
            "gateway { name: far, listen: '127.0.0.1:-1', "
            f"gateways: [{{ name: near, url: '{gateways}' }}] }}\n{ACCOUNTS}",
        )
        self.leaf, _ = self._start(
            "leaf",
            f"leafnodes {{ remotes: [{{ url: '{leafnodes}' }}] }}\n"
            f"jetstream {{ store_dir: '{folder}/leaf', domain: leaf }}",
        )

    def _start(self, name, config):
        path = self._folder / f"{name}.conf"
        path.write_text(f"server_name: {name}\n{config}")
        server = self._stack.enter_context(EmbeddedServer(config=path))

        def said(what):
            pattern = re.compile(rf"{what}s? connections on (127.0.0.1:\d+)", re.IGNORECASE)
            give_up = time.monotonic() + 5
            while not (found := pattern.search(server.log.read_text())):
                assert time.monotonic() < give_up, server.log.read_text()
                time.sleep(0.01)
            return found[1]

        return server, said


@contextlib.contextmanager
def running(folder):
    with contextlib.ExitStack() as stack:
        yield Network(folder, stack)
