"""A lightweight service mesh as a library on NATS."""

from meshkit.connecting import connect
from meshkit.durable.declaration import StreamConfig
from meshkit.durable.delivery import Delivery
from meshkit.durable.publisher import NotStored, Publisher, Stored
from meshkit.errors import (
    BadReply,
    BadRequest,
    Cancelled,
    CircuitOpen,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    DeclarationError,
    Disconnected,
    Draining,
    Forbidden,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    RateLimited,
    Redeliver,
    Reject,
    ServiceError,
    StreamBroken,
    Unauthorized,
    Unavailable,
)
from meshkit.job import Job
from meshkit.knobs import RateLimit
from meshkit.mesh import Mesh
from meshkit.message import Context
from meshkit.policies import Policies
from meshkit.policy import CallPolicy, ServePolicy
from meshkit.service import Endpoint, Service

__all__ = [
    "BadReply",
    "BadRequest",
    "CallPolicy",
    "Cancelled",
    "CircuitOpen",
    "ConfigError",
    "ConnectionLost",
    "Context",
    "DeadlineExceeded",
    "DeclarationError",
    "Delivery",
    "Disconnected",
    "Draining",
    "Endpoint",
    "Forbidden",
    "InternalError",
    "Job",
    "Mesh",
    "MeshError",
    "NoResponders",
    "NotFound",
    "NotStored",
    "Overloaded",
    "Policies",
    "Publisher",
    "RateLimit",
    "RateLimited",
    "Redeliver",
    "Reject",
    "ServePolicy",
    "Service",
    "ServiceError",
    "Stored",
    "StreamBroken",
    "StreamConfig",
    "Unauthorized",
    "Unavailable",
    "connect",
]
