"""`python -m meshkit.launcher.worker`: one process of one service.

It serves until SIGTERM, SIGINT or the end of the launcher, then answers what it has taken and ends.
"""

import logging
import signal

import anyio

from meshkit import loop
from meshkit.discovery.protocol import new_instance_id
from meshkit.launcher import child
from meshkit.launcher.config import ServiceTable
from meshkit.launcher.messages import Ready, Stopped
from meshkit.mesh import connect
from meshkit.service import Service


def main() -> None:
    """Serve the job's service."""
    launcher = child.Launcher()
    job = launcher.job
    logging.basicConfig(
        level=job.log_level.upper(),
        format=f"%(asctime)s {job.worker} %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    with child.failures_told(launcher):
        [service] = child.load(job.source)
        _override(service, job.source.table)
        loop.run(_serve, service, launcher, loop=job.loop)


def _override(service: Service, table: ServiceTable) -> None:
    """What meshkit.toml says wins over what the code declares."""
    if table.concurrency is not None:
        service.concurrency = table.concurrency
    if table.backlog is not None:
        service.backlog = table.backlog
    if table.timeout is not None:
        service.timeout = table.timeout


async def _serve(service: Service, launcher: child.Launcher) -> None:
    instance_id = new_instance_id()
    async with connect(launcher.job.url, name=f"{service.name}/{service.version}/{instance_id}") as mesh:
        # From here on a signal waits until the service is up: its lifespan is never cut in two.
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with mesh.serve(service, instance_id=instance_id):
                launcher.tell(Ready(instance_id))
                await anext(signals)
    launcher.tell(Stopped())


if __name__ == "__main__":
    main()
