"""What this worker serves, for Prometheus: read off its replicas when it is asked, so that serving only counts.

A replica's series end with it.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from maveriq_worker.replica import Replica

_OF = ("deployment", "model", "replica", "gpu_type")


class Served(Collector):
    """Reads every replica that serves now; docs/operating.md says what each series means."""

    def __init__(self, replicas: Callable[[], Iterable[Replica]]) -> None:
        self._replicas = replicas

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry is not to read the replicas when this is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("maveriq_requests_running", "Requests that the engine is at.", labels=_OF)
        waiting = GaugeMetricFamily("maveriq_requests_waiting", "Requests taken that wait for a slot.", labels=_OF)
        ended = CounterMetricFamily(
            "maveriq_requests", "Requests ended, by finish reason.", labels=(*_OF, "finish_reason")
        )
        prompts = CounterMetricFamily("maveriq_prompt_tokens", "Prompt tokens of requests ended.", labels=_OF)
        outputs = CounterMetricFamily("maveriq_output_tokens", "Tokens answered to requests ended.", labels=_OF)
        queue = HistogramMetricFamily("maveriq_queue_seconds", "From taking a request to its slot.", labels=_OF)
        ttft = HistogramMetricFamily("maveriq_ttft_seconds", "From taking a request to its first token.", labels=_OF)
        tpot = HistogramMetricFamily("maveriq_tpot_seconds", "Between two tokens of a request, its mean.", labels=_OF)
        predicted = GaugeMetricFamily("maveriq_predicted_seconds", "What the plan said, means.", labels=(*_OF, "what"))
        for replica in self._replicas():
            serving, candidate = replica.serving, replica.placement.candidate
            if serving is None:
                continue
            of = (str(replica.deployment_id), replica.placement.model.name, str(replica.placement.replica),
                  candidate.configuration.gpu_type)  # fmt: skip
            tally = serving.tally
            running.add_metric(of, serving.num_generating)
            waiting.add_metric(of, serving.num_waiting)
            for reason, number in tally.ended.items():
                ended.add_metric((*of, reason), number)
            prompts.add_metric(of, tally.prompt_tokens)
            outputs.add_metric(of, tally.output_tokens)
            for family, spread in ((queue, tally.queue), (ttft, tally.ttft), (tpot, tally.tpot)):
                family.add_metric(of, list(spread.buckets()), spread.sum_s)
            predicted.add_metric((*of, "ttft"), candidate.prediction.ttft_ms / 1e3)
            predicted.add_metric((*of, "tpot"), candidate.prediction.tpot_ms / 1e3)
        return running, waiting, ended, prompts, outputs, queue, ttft, tpot, predicted


@contextmanager
def exported(replicas: Callable[[], Iterable[Replica]]) -> Generator[None]:
    """In this process's metrics while the block runs."""
    served = Served(replicas)
    REGISTRY.register(served)
    try:
        yield
    finally:
        REGISTRY.unregister(served)
