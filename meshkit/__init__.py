"""A lightweight service mesh as a library on NATS."""

from meshkit.connecting import connect
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
    ServiceError,
    StreamBroken,
    Unauthorized,
    Unavailable,
)
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
    "Disconnected",
    "Draining",
    "Endpoint",
    "Forbidden",
    "InternalError",
    "Mesh",
    "MeshError",
    "NoResponders",
    "NotFound",
    "Overloaded",
    "Policies",
    "RateLimit",
    "RateLimited",
    "ServePolicy",
    "Service",
    "ServiceError",
    "StreamBroken",
    "Unauthorized",
    "Unavailable",
    "connect",
]
