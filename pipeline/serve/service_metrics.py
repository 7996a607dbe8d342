"""Counters of the service, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline.serve.run_spec import RunSpec
from pipeline.serve.service_config import BUCKETS

SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
PREFIX = "dreamstage_"


class ServiceMetrics:
    """A registry of its own, so that two services in one process do not share numbers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}requests", "Requests, by route and status.", ("route", "status"),
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            f"{PREFIX}request_seconds", "From a request's head to the end of its answer.",
            ("route",), buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.queue = Gauge(f"{PREFIX}queue", "Requests that wait for the model.", registry=registry)
        self.batch = Histogram(
            f"{PREFIX}batch_size", "Requests of a batch.", buckets=BUCKETS, registry=registry
        )
        self.left = Counter(
            f"{PREFIX}clients_left", "Requests whose client did not wait.", registry=registry
        )
        self.starts = Counter(
            f"{PREFIX}worker_starts", "Starts of the model's process.", registry=registry
        )
        self.ready = Gauge(f"{PREFIX}ready", "1 where the model is loaded.", registry=registry)
        self.model = Gauge(
            f"{PREFIX}model_info", "1, with the model that is served.",
            ("run", "variant", "latent_spec"), registry=registry,
        )  # fmt: skip

    def set_model(self, spec: RunSpec) -> None:
        self.model.clear()
        self.model.labels(spec.run, spec.model_variant, spec.latent_spec).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
