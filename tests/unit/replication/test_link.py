from app.replication.link import STREAMING, ReplicationEnd, Status, WorkerEnd, socket_pair


async def test_what_is_sent_arrives_packet_by_packet() -> None:
    worker_socket, replication_socket = socket_pair()
    with worker_socket, replication_socket:
        worker, replication = WorkerEnd(worker_socket), ReplicationEnd(replication_socket)
        for detail in ("first", "second"):
            await replication.send(Status(STREAMING, detail))
        assert [await worker.receive(), await worker.receive()] == [
            Status(STREAMING, "first"),
            Status(STREAMING, "second"),
        ]


async def test_a_worker_that_is_gone_is_told_by_what_is_received_and_no_error_of_sending() -> None:
    worker_socket, replication_socket = socket_pair()
    with replication_socket:
        worker_socket.close()
        replication = ReplicationEnd(replication_socket)
        await replication.send(Status(STREAMING))
        assert await replication.receive() is None
