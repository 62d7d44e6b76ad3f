"""Methods of the API that this version describes and does not serve yet: each says so, to those who may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agentd.api.errors import Context, answering
from agentd.api.identity import Access
from agentd.proto.corral.v1 import corral_pb2 as pb
from agentd.proto.corral.v1 import corral_pb2_grpc


class LaterOperatorMethods(corral_pb2_grpc.OperatorServiceServicer):
    _access: Access

    async def Trace(self, request: pb.TraceRequest, context: Context) -> AsyncIterator[pb.TraceResponse]:
        async with answering(context, "Trace"):
            self._access.operator(context)
            yield pb.TraceResponse(notice="tracing is not served by this version; update the daemon")
