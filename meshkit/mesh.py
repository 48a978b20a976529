"""What a user holds: the mesh, to call, publish, serve and look around."""

import asyncio
import functools
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

import anyio
import msgspec

from meshkit import codec, loop
from meshkit import headers as wire
from meshkit.codec import Decoder
from meshkit.discovery import registry
from meshkit.discovery.protocol import NAME, new_instance_id
from meshkit.discovery.registry import DiscoveredService
from meshkit.errors import BadReply, BadRequest, ConfigError, MeshError, from_headers
from meshkit.instance import Instance
from meshkit.layers.propagation import merge
from meshkit.message import CURRENT, DEFAULT_TIMEOUT, LONGEST_TIMEOUT, Request, Response
from meshkit.service import Endpoint, Service, Target
from meshkit.stack import client_stack
from meshkit.subject import check
from meshkit.transport import Transport

R = TypeVar("R")
StrPath = str | os.PathLike[str]

_decoder = functools.lru_cache(maxsize=1024)(Decoder)
_RAW = Decoder(bytes)


class Mesh:
    """A connection to the mesh. Made by `connect`; handlers have one in `ctx.mesh`.

    Args:
        transport: The connection.
        content: Content type of what is sent.
        caller: `service/instance` whose mesh this is; None for a client that is no service.
    """

    def __init__(self, transport: Transport, *, content: str = codec.JSON, caller: str | None = None) -> None:
        self.transport = transport
        self._content = content
        # What travels with a message that is given no headers.
        self._head = b"" if content == codec.JSON else wire.line(codec.CONTENT_TYPE, content)
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._stack = client_stack(self._send, caller=caller)

    @overload
    async def call(
        self,
        target: Endpoint[..., Any, R] | Target[R],
        message: object = ...,
        *,
        timeout: float | None = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> R: ...
    @overload
    async def call(
        self,
        target: str,
        message: object = ...,
        *,
        returns: type[R],
        timeout: float | None = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> R: ...
    @overload
    async def call(
        self,
        target: str | Endpoint[..., Any, Any] | Target[Any],
        message: object = ...,
        *,
        returns: Any = ...,
        timeout: float | None = ...,
        headers: Mapping[str, str] | None = ...,
    ) -> Any: ...
    async def call(
        self,
        target: str | Endpoint[..., Any, Any] | Target[Any],
        message: object = None,
        *,
        returns: Any = ...,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Call an endpoint and wait for its reply.

        Args:
            target: A subject, an endpoint, or `endpoint.at(...)` for one whose subject has parameters.
            message: What to send, of any type that msgspec encodes; `bytes` are sent as they are, None is no
                message.
            returns: The type of the reply; an endpoint's own by default, for a subject whatever the reply's
                JSON is. `bytes` is the payload as it is.
            timeout: Seconds to wait; the endpoint's own by default, else 5. Within a handler the call ends
                with the handler's own deadline, if that is earlier.
            headers: To send along.

        Raises:
            MeshError: The call failed; `meshkit.errors` has the tree.
            BadReply: The reply is not of the type asked for.
            ValueError: The subject, a header or the timeout is none.
            TypeError: msgspec cannot encode the message.
        """
        started = self._loop.time()
        subject, decoder, usual = _resolve(target, returns)
        head, kind = (self._head, self._content) if headers is None else self._given(headers, message)
        request = Request(
            subject,
            b"" if message is None else codec.encode(message, kind),
            head,
            started,
            _deadline(started, usual if timeout is None else timeout),
        )
        try:
            response = await self._stack(request)
            return _decode(decoder, response, kind)
        except MeshError as error:
            error.target = subject
            error.elapsed = self._loop.time() - started
            raise

    def _given(self, headers: Mapping[str, str], message: object) -> tuple[bytes, str]:
        """What travels with a message that is given headers, and its content type."""
        wire.check(headers)
        is_named = any(name.lower() == codec.CONTENT_TYPE.lower() for name in headers)
        head = b"" if is_named else self._head
        head += wire.render(headers)
        return head, codec.content_type(head, any_if_raw=_RAW if isinstance(message, bytes) else None)

    async def _send(self, request: Request) -> Response:
        message = await self.transport.request(
            request.subject, request.payload, request.head, request.deadline
        )
        if message.head and (error := from_headers(message.headers)) is not None:
            try:
                raise error
            finally:
                del error  # else it and this frame keep each other until the garbage collector comes
        return Response(message.payload, message.head)

    async def publish(
        self, subject: str, message: object = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish an event, to whoever listens.

        Args:
            subject: Where to.
            message: What, as in `call`.
            headers: To send along.

        Raises:
            Disconnected: There is no connection, and none came within five seconds.
            BadRequest: The event is larger than the server takes.
            ValueError: The subject or a header is none.
            TypeError: msgspec cannot encode the message.
        """
        check(subject)
        head, kind = (self._head, self._content) if headers is None else self._given(headers, message)
        current = CURRENT.get()
        if current is not None:
            head = merge(current.trace, head)
        payload = b"" if message is None else codec.encode(message, kind)
        await self.transport.publish(subject, payload, head)

    @asynccontextmanager
    async def serve(self, service: Service, *, instance_id: str | None = None) -> AsyncGenerator[Instance]:
        """Serve within an `async with` block; leaving it drains.

        Args:
            service: What to serve. A connection can serve several.
            instance_id: The instance's id in discovery; a new one by default.

        Raises:
            Forbidden: The connection's user may not subscribe to a subject of the service.
        """
        instance_id = instance_id or new_instance_id()
        if not NAME.match(instance_id):
            raise ValueError(f"instance id {instance_id!r} may hold letters, digits, - and _ only")
        mesh = Mesh(self.transport, content=self._content, caller=f"{service.name}/{instance_id}")
        instance = Instance(service, mesh, self.transport, instance_id)
        await instance.start()
        try:
            yield instance
        finally:
            await instance.stop()

    async def services(self) -> list[DiscoveredService]:
        """Everything that answers in the mesh, of whatever client; statistics are summed over instances."""
        return await registry.services(self.transport)

    async def service(self, name: str) -> DiscoveredService:
        """One service with its instances, endpoints and statistics.

        Raises:
            NotFound: Nothing of that name answers.
        """
        return await registry.service(self.transport, name)


def _resolve(target: str | Endpoint[..., Any, Any] | Target[Any], returns: Any) -> tuple[str, Decoder, float]:
    """Where a call goes, what its reply is, and the seconds that it usually may take."""
    if isinstance(target, Endpoint):
        endpoint, subject = target, target.subject
        if endpoint.pattern.wire != subject:
            raise ValueError(
                f"{endpoint.name} is on {subject!r}: call {endpoint.name}.at(...) with its parameters, "
                "or a subject"
            )
    elif isinstance(target, str):
        return check(target), _decoder(Any if returns is ... else returns), DEFAULT_TIMEOUT
    elif isinstance(target, Target):  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
        endpoint, subject = target.endpoint, target.subject
    else:
        raise TypeError(f"{target!r} cannot be called; give a subject, an endpoint, or endpoint.at(...)")
    decoder = endpoint.signature.reply if returns is ... else _decoder(returns)
    return subject, decoder, endpoint.timeout or DEFAULT_TIMEOUT


def _deadline(now: float, timeout: float) -> float:
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
    current = CURRENT.get()
    return now + timeout if current is None else min(now + timeout, current.deadline)


def _decode(decoder: Decoder, response: Response, kind: str) -> Any:
    try:
        if response.head:
            kind = codec.content_type(response.head, any_if_raw=decoder, usual=kind)
        return decoder(response.payload, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest) as error:
        raise BadReply(f"the reply is not {decoder.type}: {error}; returns=bytes gives it as it is") from None


@asynccontextmanager
async def connect(
    url: str | list[str] | None = None,
    *,
    name: str | None = None,
    timeout: float = 2.0,
    codec: str = "json",
    credentials: StrPath | None = None,
    nkey: StrPath | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    tls_ca: StrPath | None = None,
    tls_cert: StrPath | None = None,
    tls_key: StrPath | None = None,
) -> AsyncGenerator[Mesh]:
    """Connect to NATS for the time of an `async with` block.

    What is not given comes from the environment, by the names that the `nats` command uses.

    Args:
        url: One server or several of a cluster, as a list or separated by commas; NATS_URL, else
            nats://127.0.0.1:4222. tls:// asks for an encrypted connection.
        name: What the connection is called in the server's monitoring.
        timeout: Seconds to go on trying to make the first connection.
        codec: How messages are sent, json or msgpack; replies come the same way.
        credentials: A `.creds` file; NATS_CREDS.
        nkey: A file with an nkey seed; NATS_NKEY.
        user: With password; NATS_USER, NATS_PASSWORD.
        password: With user.
        token: NATS_TOKEN.
        tls_ca: Certificate authority to check the server by; NATS_CA.
        tls_cert: Client certificate; NATS_CERT.
        tls_key: Its key; NATS_KEY.

    Raises:
        Disconnected: No server could be reached, or it refused; the text says which and why.
        ConfigError: An option is of no use; the text says which and why.
    """
    # nats-py takes a tenth of a second to import, which who only declares services need not wait for.
    from meshkit.transport.nats import NatsTransport
    from meshkit.transport.options import options

    content = _content(codec)
    transport = NatsTransport(
        options(
            url,
            credentials=credentials,
            nkey=nkey,
            user=user,
            password=password,
            token=token,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        ),
        name=name,
    )
    await transport.connect(timeout)
    try:
        yield Mesh(transport, content=content)
    finally:
        with anyio.CancelScope(shield=True):
            await transport.close()


def _content(name: str) -> str:
    if name not in codec.CODECS:
        raise ConfigError(f"codec {name!r} is not known; write {' or '.join(codec.CODECS)}")
    return codec.CODECS[name]


def run(service: Service, url: str | None = None, **options: Any) -> None:
    """What `Service.run` does."""

    async def serve() -> None:
        instance_id = new_instance_id()
        name = f"{service.name}/{service.version}/{instance_id}"
        options.setdefault("name", name)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with connect(url, **options) as mesh, mesh.serve(service, instance_id=instance_id):
                await anext(signals)

    try:
        loop.run(serve)
    except (MeshError, ConfigError) as error:
        sys.exit(f"meshkit: {getattr(error, 'message', error)}")
