"""The metrics of the journal: the names of protocol section 7, on a registry of their own."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_fastapi_instrumentator.metrics import Info

from app.replication.link import Progressed
from app.wal.files import Volume
from app.wal.writer import Committed

_LATENCY_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
_SIZE_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_HTTP_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60,
)  # fmt: skip


class HttpMetrics:
    """The default metrics of prometheus-fastapi-instrumentator, under their names.

    Its middleware observes the routes with `observe`. What is bound to one route beforehand costs a
    fraction of that: on the hot path the library's own function would take a third of the time.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "http_requests_total",
            "Requests by method, status and handler",
            ("method", "status", "handler"),
            registry=registry,
        )
        self._request_size = Summary(
            "http_request_size_bytes",
            "Content length of requests by handler",
            ("handler",),
            registry=registry,
        )
        self._response_size = Summary(
            "http_response_size_bytes",
            "Content length of answers by handler",
            ("handler",),
            registry=registry,
        )
        self._duration_highr = Histogram(
            "http_request_duration_highr_seconds",
            "Time of requests, in many buckets",
            buckets=_HTTP_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Time of requests by method and handler",
            ("method", "handler"),
            buckets=(0.01, 0.1, 0.5, 1),
            registry=registry,
        )

    def observe(self, info: Info) -> None:
        """Observe one request, as the library's middleware describes it."""
        route = self.route(info.method, info.modified_handler)
        headers = info.response.headers if info.response is not None else {}
        route.observe(
            info.modified_status,
            info.modified_duration,
            int(info.request.headers.get("content-length", 0)),
            int(headers.get("content-length", 0)),
        )

    def route(self, method: str, handler: str) -> "RouteMetrics":
        """The metrics of one route."""
        return RouteMetrics(
            self._total,
            (method, handler),
            self._request_size.labels(handler),
            self._response_size.labels(handler),
            self._duration_highr,
            self._duration.labels(method, handler),
        )


class RouteMetrics:
    """The HTTP metrics of one route."""

    def __init__(
        self,
        total: Counter,
        labels: tuple[str, str],
        request_size: Summary,
        response_size: Summary,
        duration_highr: Histogram,
        duration: Histogram,
    ) -> None:
        self._total = total
        self._method, self._handler = labels
        self._by_status: dict[str, Counter] = {}
        self._request_size = request_size
        self._response_size = response_size
        self._duration_highr = duration_highr
        self._duration = duration

    def observe(
        self, status: str, duration_s: float, request_bytes: int, response_bytes: int
    ) -> None:
        """Observe one request; `status` is its class, such as `2xx`."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._total.labels(self._method, status, self._handler)
            self._by_status[status] = counter
        counter.inc()
        self._request_size.observe(request_bytes)
        self._response_size.observe(response_bytes)
        self._duration_highr.observe(duration_s)
        self._duration.observe(duration_s)


class JournalMetrics:
    """Every metric of one running service. Seconds and bytes, as the names say."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.http = HttpMetrics(registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=_LATENCY_BUCKETS, registry=registry)

        self.queue_latency = seconds(
            "ht_journal_queue_latency_seconds", "Time a request waits before the writer takes it"
        )
        self.batch_size = Histogram(
            "ht_journal_batch_size",
            "Entries of a WAL batch",
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self.wal_append = seconds(
            "ht_journal_wal_append_seconds", "Time to build, append and sync a WAL batch"
        )
        self.fdatasync = seconds("ht_journal_fdatasync_seconds", "Time of a sync of the WAL")
        self.wal_batches = counter("ht_journal_wal_batches", "WAL batches that became durable")
        self.wal_entries = counter("ht_journal_wal_entries", "Entries that became durable")
        self.wal_replay_entries = counter(
            "ht_journal_wal_replay_entries",
            "Entries found at start that Postgres had not confirmed",
        )
        self.io_uring_fallbacks = counter(
            "ht_journal_wal_io_uring_fallbacks", "Changes from io_uring to fdatasync"
        )
        self.duplicates = counter("ht_journal_duplicates", "Entries answered as duplicates")
        self.rejected = counter(
            "ht_journal_rejected",
            "Requests that were refused: to POST /entries for any reason, to others for want of a "
            "token",
            ("reason",),
        )
        self.queue_entries = gauge("ht_journal_queue_entries", "Entries that wait for the writer")
        self.replication_backlog = gauge(
            "ht_journal_replication_backlog", "Entries durable but not yet in Postgres"
        )
        self.replication_chunks = counter(
            "ht_journal_replication_chunks", "Transactions committed to Postgres"
        )
        self.replication_errors = counter(
            "ht_journal_replication_errors", "Errors of replication, retried ones included"
        )
        self.replication_failures = counter(
            "ht_journal_replication_batch_failures", "Deaths of the replication process"
        )
        self.postgres_insert = seconds(
            "ht_journal_postgres_insert_seconds", "Time of a transaction into Postgres"
        )
        self.dead_letters = counter("ht_journal_dead_letters", "Entries that Postgres refused")
        self.replication_lag = gauge(
            "ht_replication_lag_seconds",
            "How long the oldest entry not in Postgres has been durable",
        )
        self.blocks_produced = counter("ht_blocks_produced", "Blocks that became durable")
        self.blocks_unsigned = gauge(
            "ht_blocks_unsigned", "Blocks since the start that no key signed"
        )
        self.wal_file_size = gauge("ht_wal_file_size_bytes", "Logical end of the WAL")
        self.checkpoint_offset = gauge(
            "ht_wal_checkpoint_offset_bytes", "How far the WAL is replicated and checkpointed"
        )
        self.unreplicated = gauge("ht_wal_unreplicated_bytes", "WAL behind the checkpoint")
        self.hole_punched = counter("ht_wal_hole_punch_bytes", "WAL bytes given back")
        self.volume_total = gauge("ht_wal_volume_total_bytes", "Size of the volume of the WAL")
        self.volume_used = gauge("ht_wal_volume_used_bytes", "Used bytes of that volume")
        self.volume_available = gauge("ht_wal_volume_avail_bytes", "Available bytes of that volume")
        self.volume_usage = gauge("ht_wal_volume_usage_pct", "Used part of that volume, per cent")

    def committed(self, pass_: Committed) -> None:
        """Record one pass of the writer."""
        for submission, _ in pass_.outcomes:
            if submission.request is not None:
                self.queue_latency.observe(max(0.0, pass_.taken_at - submission.submitted_at))
        if pass_.duplicates:
            self.duplicates.inc(pass_.duplicates)
        if pass_.block_height is not None:
            self.blocks_produced.inc()
        if pass_.entries:
            self.batch_size.observe(pass_.entries)
            self.wal_append.observe(pass_.append_s)
            self.fdatasync.observe(pass_.sync_s)
            self.wal_batches.inc()
            self.wal_entries.inc(pass_.entries)

    def progressed(self, progress: Progressed) -> None:
        """Record one transaction of replication."""
        if progress.entries:
            self.replication_chunks.inc()
            self.postgres_insert.observe(progress.insert_s)

    def volume(self, volume: Volume) -> None:
        """Record the room on the volume of the WAL."""
        self.volume_total.set(volume.total_bytes)
        self.volume_used.set(volume.used_bytes)
        self.volume_available.set(volume.available_bytes)
        if volume.total_bytes:
            self.volume_usage.set(100 * volume.used_bytes / volume.total_bytes)
