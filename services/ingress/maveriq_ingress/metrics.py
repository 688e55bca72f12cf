"""What is kept and heard of deployments, GPUs and calibrations, for Prometheus: GET /metrics.

Counters are of what this process heard; gauges are of the whole cluster, so several ingresses say the same. What else
runs in this process is told too: its own CPU and memory, and of an embedded cluster what its worker serves.
"""

from collections import Counter as Count
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint

from maveriq.contracts import PredictionMissed, State
from maveriq_ingress.calibrations import Calibrations
from maveriq_ingress.changes import Changes
from maveriq_ingress.inventory import Heard, Inventories

_ON = ("engine", "gpu_type")


@dataclass(slots=True)
class Metrics:
    """The instruments of one ingress."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _missed: Counter = field(init=False)
    _drifted: Counter = field(init=False)
    _deployments: Gauge = field(init=False)
    _gpus: Gauge = field(init=False)
    _gpu_bytes: Gauge = field(init=False)
    _version: Gauge = field(init=False)
    _residual: Gauge = field(init=False)
    _models: Gauge = field(init=False)
    _drift: Gauge = field(init=False)

    def __post_init__(self) -> None:
        self._missed = Counter(
            "maveriq_predictions_missed",
            "Deployments whose served times stayed outside the predicted interval; each was planned for again.",
            (*_ON, "what"),
            registry=self.registry,
        )
        self._drifted = Counter(
            "maveriq_traffic_drifted", "Deployments that were asked lastingly otherwise than they were planned for.",
            registry=self.registry,
        )  # fmt: skip
        self._deployments = self._gauge("maveriq_deployments", "Deployments by state.", ("state",))
        self._gpus = self._gauge("maveriq_gpus", "GPUs, and those of nodes that report no more.", ("gpu_type", "state"))
        self._gpu_bytes = self._gauge("maveriq_gpu_bytes", "GPU memory by who holds it.", ("gpu_type", "of"))
        self._version = self._gauge("maveriq_calibration_version", "Grows with every fit of a GPU type.", _ON)
        self._residual = self._gauge(
            "maveriq_calibration_residual_ratio", "Median miss of the samples that a GPU type was fitted to.", _ON
        )
        self._models = self._gauge("maveriq_calibration_models", "Model shapes that a calibration has seen.", _ON)
        self._drift = self._gauge(
            "maveriq_calibration_drift_ratio", "Time of served passes over that of measured ones.", (*_ON, "what")
        )

    def count_missed(self, message: PredictionMissed) -> None:
        self._missed.labels(message.engine, message.gpu_type, message.what).inc()

    def count_drifted(self) -> None:
        self._drifted.inc()

    async def text(self, calibrations: Calibrations, changes: Changes, inventories: Inventories) -> bytes:
        """Raises RedisError."""
        states = Count(changes.routes.states())
        for state in State:
            self._deployments.labels(state).set(states[state])
        self._tell_gpus(await inventories.all())
        for one in await calibrations.all():
            self._version.labels(one.engine, one.gpu_type).set(one.version)
            self._residual.labels(one.engine, one.gpu_type).set(one.latency_residuals.median)
            self._models.labels(one.engine, one.gpu_type).set(one.scope.num_models)
            self._drift.labels(one.engine, one.gpu_type, "prefill_ms").set(one.prefill_drift)
            self._drift.labels(one.engine, one.gpu_type, "decode_ms").set(one.decode_drift)
        return generate_latest(self.registry) + generate_latest(REGISTRY)

    def _tell_gpus(self, nodes: Iterable[Heard]) -> None:
        """Those that were told before and are gone since are told no more."""
        gpus, held = Count[tuple[str, str]](), Count[tuple[str, str]]()
        for node in nodes:
            for state in node.inventory.gpus:
                name = state.gpu.gpu_type
                gpus[name, "silent" if node.inventory.silent else "reporting"] += 1
                held[name, "reserved"] += sum(holding.bytes for holding in state.holdings)
                held[name, "foreign"] += state.gpu.foreign_bytes
                held[name, "free"] += state.free_bytes
        for gauge, values in ((self._gpus, gpus), (self._gpu_bytes, held)):
            gauge.clear()
            for labels, value in values.items():
                gauge.labels(*labels).set(value)

    def _gauge(self, name: str, told: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, told, labels, registry=self.registry)


@dataclass(frozen=True, slots=True)
class MetricsApi:
    metrics: Metrics
    calibrations: Calibrations
    changes: Changes
    inventories: Inventories

    def endpoints(self) -> list[Endpoint]:
        return [Endpoint("/metrics", self.tell, methods=["GET"])]

    async def tell(self, request: Request) -> Response:
        text = await self.metrics.text(self.calibrations, self.changes, self.inventories)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
