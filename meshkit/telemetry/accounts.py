"""What an instance counts, and what it reports of that."""

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from meshkit.discovery.description import stats
from meshkit.discovery.protocol import StatsResponse
from meshkit.durable.declaration import Consumption
from meshkit.durable.worker import Deliveries
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.statistics import Statistics
from meshkit.service import Declared, Endpoint, Service
from meshkit.telemetry.report import Bounded, Consumed, Recent, Report, Served, bound, served

if TYPE_CHECKING:
    from meshkit.mesh import Mesh

# That the services protocol's answer has of each endpoint.
_MOST_CIRCUITS = 20


class Accounts:
    """The statistics of an instance's endpoints, subscriptions and consumers, and of the calls that it makes.

    Args:
        service: What runs.
        instance_id: The instance's id.
        mesh: What its handlers call with.

    Attributes:
        statistics: Of each endpoint, then of each subscription, then of each consumer.
        deliveries: What else is counted of each consumer.
        own: The bounds on concurrency that they have of their own.
        shared: The bound that the endpoints share.
    """

    def __init__(self, service: Service, instance_id: str, mesh: "Mesh") -> None:
        self.statistics: dict[Declared, Statistics] = {
            declared: Statistics()
            for declared in (*service.endpoints, *service.subscriptions, *service.consumptions)
        }
        self.deliveries: dict[Consumption, Deliveries] = {}
        self.own: dict[Declared, Bounded | None] = {}
        self.shared: Concurrency | None = None
        self._service = service
        self._id = instance_id
        self._mesh = mesh
        self._started = datetime.now(UTC)
        self._recent = Recent()

    def report(self) -> Report:
        """All of it."""
        return self._mesh.telemetry.report(
            name=self._service.name,
            id=self._id,
            version=self._service.version,
            started=self._started.timestamp(),
            served=self._served(),
            called=self._mesh.called(),
            bound=bound(self.shared),
            published=self._mesh.published,
            jobs=self._mesh.jobs(),
        )

    def stats(self) -> StatsResponse:
        """What the services protocol has: the endpoints, with what else is known of each."""
        circuits = dict(islice(self._mesh.circuits.items(), _MOST_CIRCUITS))
        shared = bound(self.shared)
        each = [
            msgspec.structs.replace(one, circuits=circuits, bound=one.bound or shared)
            for one in self._served()
        ]
        endpoints = list(zip(self.statistics.values(), each, strict=True))
        return stats(self._service, self._id, self._started, endpoints[: len(self._service.endpoints)])

    def _served(self) -> list[Served]:
        return [
            served(
                declared.name,
                declared.pattern.wire,
                counted,
                self._recent,
                is_event=not isinstance(declared, Endpoint),
                own=self.own.get(declared),
                consumed=self._consumed(declared),
            )
            for declared, counted in self.statistics.items()
        ]

    def _consumed(self, declared: Declared) -> Consumed | None:
        if not isinstance(declared, Consumption) or declared not in self.deliveries:
            return None
        counted = msgspec.structs.asdict(self.deliveries[declared])
        return Consumed(stream=declared.source, consumer=declared.name, **counted)
