"""gRPC's asyncio interface with protobuf messages, whose classes are made here and not by a generator.

The trace and the caller travel as metadata, the time left as gRPC's own deadline.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks.work import Call, check, check_bytes, headers

_TEXT, _NUMBER = (
    descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
)
_BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def messages(**declared: dict[str, Any]) -> list[Any]:
    """Classes of messages, from the types of their fields."""
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    for name, fields in declared.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            message.field.add(
                name=field, number=number, type=kind, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}")) for name in declared]


Ask, Answer, Content = messages(
    Ask={"name": _TEXT, "n": _NUMBER}, Answer={"greeting": _TEXT, "n": _NUMBER}, Content={"content": _BYTES}
)


@asynccontextmanager
async def serve(port: int, *, nap: float = 0, payload: int = 0) -> AsyncIterator[None]:
    """The echo."""

    async def echo(ask: Any, _: grpc.aio.ServicerContext) -> Any:
        if nap:
            await asyncio.sleep(nap)
        return Answer(greeting=f"hello {ask.name}", n=ask.n + 1)

    async def echo_bytes(content: Any, _: grpc.aio.ServicerContext) -> Any:
        return content

    method = grpc.unary_unary_rpc_method_handler
    if payload:
        handler = method(echo_bytes, Content.FromString, Content.SerializeToString)
    else:
        handler = method(echo, Ask.FromString, Answer.SerializeToString)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bench", {"Echo": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield
    await server.stop(None)


@asynccontextmanager
async def client(port: int, *, payload: int = 0) -> AsyncIterator[Call]:
    """Its caller."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        sent, got = (Content, Content) if payload else (Ask, Answer)
        echo = channel.unary_unary("/bench.Bench/Echo", sent.SerializeToString, got.FromString)
        content = bytes(payload)

        def metadata(n: int) -> list[tuple[str, str]]:
            of_mesh = headers(n)
            return [("traceparent", of_mesh["traceparent"]), ("mesh-caller", of_mesh["Mesh-Caller"])]

        async def call(n: int) -> None:
            reply = await echo(Ask(name="world", n=n), timeout=5, metadata=metadata(n))
            check(reply.n, n)

        async def call_bytes(n: int) -> None:
            reply = await echo(Content(content=content), timeout=5, metadata=metadata(n))
            check_bytes(reply.content, content)

        yield call_bytes if payload else call
