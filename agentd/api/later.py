"""Methods of the API that this version describes and does not serve yet: each says so, to those who may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agentd.api.errors import Context, answering
from agentd.api.identity import Access
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc
from controller.model import CannotEnforce


def _not_served(what: str) -> CannotEnforce:
    return CannotEnforce(f"{what} is not served by this version", remedy="update the daemon")


class LaterOperatorMethods(corral_pb2_grpc.OperatorServiceServicer):
    _access: Access

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachResponse:
        async with answering(context, "Attach"):
            self._access.operator(context)
            raise _not_served("Attach")

    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:
        async with answering(context, "Detach"):
            self._access.operator(context)
            raise _not_served("Detach")

    async def Trace(self, request: pb.TraceRequest, context: Context) -> AsyncIterator[pb.TraceResponse]:
        async with answering(context, "Trace"):
            self._access.operator(context)
            yield pb.TraceResponse(notice="tracing is not served by this version; update the daemon")
