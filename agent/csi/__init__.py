"""The CSI driver: the Identity, Controller, GroupController and Node services of CSI v1.12 on a socket of the agent.

The services are coroutines on the agent's trio loop and share its pools, mounter and attachments; a volume needs no
object of the agent's own. ``server`` runs grpcio beside the loop: a thread per call, which waits for its coroutine.
Weighed against it: grpclib and grpc.aio need asyncio, purerpc (anyio) has not been kept since 2022. grpcio is imported
by ``server`` alone, and only by an agent that has an endpoint.

A volume is a volume of a pool; its handle is ``POOL/ID`` and never becomes a path unchecked. Who may ask is decided by
the socket: root. Requests are never logged, only their method, handle and outcome, so that no secret is.
"""
