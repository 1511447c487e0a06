"""The page that Prometheus reads: `statistics` and the queues in its format, on a port of its own.

Beside them stand the process's memory, descriptors and processor time. Everything is put together when it is asked
for, by a thread that has nothing to do with requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from inference_server.statistics import BOUNDS_S, Histogram, Statistics

_REQUEST = ["model", "tenant"]


class _Page(Collector):
    def __init__(self, statistics: Statistics, waiting: Callable[[], Mapping[str, int]]) -> None:
        self._statistics = statistics
        self._waiting = waiting

    def describe(self) -> list[Metric]:
        """Nothing is counted at the time of registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, as of now."""
        waiting = GaugeMetricFamily("inference_queue_requests", "Requests that wait.", labels=["tenant"])
        for share, count in self._waiting().items():
            waiting.add_metric([share], count)
        yield waiting
        # Whoever counts must not wait while the page is written.
        with self._statistics.read():
            found = [*self._requests(), *self._executions(), self._impaired()]
        yield from found

    def _requests(self) -> list[Metric]:
        endings = CounterMetricFamily("inference_requests", "Requests by how they ended.", labels=[*_REQUEST, "status"])
        queue, compute, server = (
            HistogramMetricFamily(f"inference_{name}_seconds", about, labels=_REQUEST)
            for name, about in (
                ("queue", "From queued to started."),
                ("compute", "From started to finished."),
                ("server", "From received to finished."),
            )
        )
        for (model, share), counts in self._statistics.shares.items():
            for code, count in counts.endings.items():
                endings.add_metric([model, share, code.name], count)
            for family, histogram in ((queue, counts.queue_s), (compute, counts.compute_s), (server, counts.server_s)):
                _add(family, [model, share], histogram)
        return [endings, queue, compute, server]

    def _executions(self) -> list[Metric]:
        rows = CounterMetricFamily("inference_rows", "Rows computed.", labels=["model"])
        executions = CounterMetricFamily("inference_executions", "Computations, by rows.", labels=["model", "rows"])
        for model, counts in self._statistics.models.items():
            rows.add_metric([model], counts.rows)
            for size, parts in counts.batches.items():
                executions.add_metric([model, str(size)], parts.infer.count)
        return [rows, executions]

    def _impaired(self) -> Metric:
        impaired = CounterMetricFamily(
            "inference_impaired_requests", "Requests made worse on purpose, by how.", labels=["kind"]
        )
        for kind, count in self._statistics.impaired.items():
            impaired.add_metric([kind], count)
        return impaired


class MetricsPage:
    """The page while it is served.

    Attributes:
        port: Where.
    """

    def __init__(self, listen: str, statistics: Statistics, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Serve it.

        Args:
            listen: `HOST:PORT`; port 0 picks one.
            statistics: What has been counted.
            waiting: Requests that wait, by share.

        Raises:
            OSError: The address cannot be used.
        """
        registry = CollectorRegistry()
        registry.register(_Page(statistics, waiting))
        ProcessCollector(registry=registry)
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise OSError(f"metrics {listen}: cannot listen there ({error}); is the port taken?") from error
        self.port = self._server.server_port

    def close(self) -> None:
        """Serve it no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    cumulative = list(accumulate(histogram.counts))
    family.add_metric(labels, list(zip(bounds, cumulative, strict=True)), histogram.sum_s)
