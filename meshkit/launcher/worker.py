"""`python -m meshkit.launcher.worker`: one process of one service.

It serves until SIGTERM, SIGINT or the end of the launcher, then answers what it has taken and ends.
"""

import signal

import anyio
import msgspec
from msgspec import UNSET

from meshkit import loop
from meshkit.connecting import connect
from meshkit.discovery.protocol import new_instance_id
from meshkit.launcher import child
from meshkit.launcher.messages import Ready, Stopped
from meshkit.policy import ServePolicy
from meshkit.service import Service
from meshkit.telemetry.logs import configure


def main() -> None:
    """Serve the job's service."""
    launcher = child.Launcher()
    job = launcher.job
    name, instance_id = job.source.service, new_instance_id()
    instance = f"{name}/{instance_id}"
    configure(job.log_format, job.log_level, worker=job.worker, service=name, instance=instance)
    with child.failures_told(launcher):
        [service] = child.load(job.source)
        _override(service, job.source.serve)
        loop.run(_serve, service, instance_id, launcher, loop=job.loop)


def _override(service: Service, serve: ServePolicy) -> None:
    """What meshkit.toml says wins over what the code declares."""
    service.serve = msgspec.structs.replace(service.serve, **serve.said())
    # As in code, it is for callers too: what they are told to do. Theirs cannot be none: it is the default.
    if serve.timeout is not UNSET:
        service.call = msgspec.structs.replace(service.call, timeout=serve.timeout or UNSET)


async def _serve(service: Service, instance_id: str, launcher: child.Launcher) -> None:
    job = launcher.job
    name = f"{service.name}/{service.version}/{instance_id}"
    if job.trace:
        from meshkit.launcher.spans import trace_to  # which loads OpenTelemetry

        trace_to(launcher, name)
    async with connect(
        job.url, name=name, policies=job.source.policies, metrics_port=job.metrics_port
    ) as mesh:
        # From here on a signal waits until the service is up: its lifespan is never cut in two.
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with mesh.serve(service, instance_id=instance_id):
                launcher.tell(Ready(instance_id))
                await anext(signals)
    launcher.tell(Stopped())


if __name__ == "__main__":
    main()
