"""`python -m meshkit.launcher.describe`: import a module and tell the launcher which services it has.

A process of its own: the launcher never holds user code, so it can look again after every change.
"""

import sys
from pathlib import Path

from meshkit.durable.plan import wanted_by
from meshkit.launcher import child
from meshkit.launcher.messages import Described, Description, Endpoint
from meshkit.launcher.targets import Source
from meshkit.service import Declared, Service
from meshkit.telemetry.logs import configure


def main() -> None:
    """Describe the services of the job's source."""
    launcher = child.Launcher()
    if launcher.job.log_format == "json":
        configure("json", "warning")
    with child.failures_told(launcher):
        services = child.load(launcher.job.source)
        described = Described([_description(service) for service in services], _folder(launcher.job.source))
    launcher.tell(described)


def _description(service: Service) -> Description:
    return Description(
        service.name,
        service.version,
        [_endpoint(endpoint, endpoint.queue) for endpoint in service.endpoints],
        [_endpoint(subscription, subscription.queue) for subscription in service.subscriptions],
        [_endpoint(consumption, consumption.source) for consumption in service.consumptions],
        [wanted_by(consumption) for consumption in service.consumptions],
        list(service.streams),
    )


def _endpoint(declared: Declared, queue: str | None) -> Endpoint:
    doc = declared.signature.function.__doc__ or ""
    return Endpoint(declared.subject, queue, doc.strip().partition("\n")[0])


def _folder(source: Source) -> str:
    """The folder whose files make up the module: that of its outermost package, else its file's."""
    outermost = sys.modules[source.module.partition(".")[0]]
    # A package without an __init__.py has no file: its module's folder is what is left.
    file = outermost.__file__ or sys.modules[source.module].__file__
    return str(Path(file).parent) if file else source.folder


if __name__ == "__main__":
    main()
