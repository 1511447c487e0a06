"""What Triton adds to the protocol, said of our models: configuration, statistics and the index of the repository.

Only messages are made here, from what `models` and `statistics` hold; the calls themselves are `service`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from inference_server.generated import open_inference_pb2 as pb
from inference_server.models import Model
from inference_server.statistics import Duration, ModelCounts, Parts
from inference_server.tensors import TensorSpec

READY, UNAVAILABLE = "READY", "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Serving:
    """How every model is served.

    Attributes:
        workers: Threads that compute.
        device: Where.
        queue_limit: Most requests that wait for each share.
        batch_rows: Most rows that are computed together, 1 for no batching.
        batch_delay_s: How long a batch that is not full waits for more.
    """

    workers: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    queue_limit: int = 1024
    batch_rows: int = 1
    batch_delay_s: float = 0.0


def config(model: Model, serving: Serving) -> pb.ModelConfig:
    """How a model is served, in Triton's words: dimensions do not count the rows of a model that takes any number."""
    found = pb.ModelConfig(
        name=model.name,
        platform=model.platform,
        backend="pytorch",
        max_batch_size=model.max_rows if model.joins else 0,
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=model.decoupled),
    )
    for spec in model.inputs:
        found.input.add(name=spec.name, data_type=_datatype(spec), dims=_dims(spec, model))
    for spec in model.outputs:
        found.output.add(name=spec.name, data_type=_datatype(spec), dims=_dims(spec, model))
    on_gpu = serving.device.type == "cuda"
    kind = pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
    found.instance_group.add(name=f"{model.name}_0", count=serving.workers, kind=kind)
    if model.joins and serving.batch_rows > 1:
        batching = found.dynamic_batching
        batching.preferred_batch_size.append(serving.batch_rows)
        batching.max_queue_delay_microseconds = round(serving.batch_delay_s * 1e6)
        batching.preserve_ordering = True
        policy = batching.default_queue_policy
        policy.timeout_action = pb.ModelQueuePolicy.REJECT
        policy.allow_timeout_override = True
        policy.max_queue_size = serving.queue_limit
    return found


def statistics(model: Model, counts: ModelCounts) -> pb.ModelStatistics:
    """What has been computed of a model."""
    found = pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=counts.last_ms,
        inference_count=counts.rows,
        execution_count=counts.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            **_parts(counts.compute),
        ),
    )
    for rows, parts in sorted(counts.batches.items()):
        found.batch_stats.add(batch_size=rows, **_parts(parts))
    return found


def index(models: Iterable[Model], *, accepting: bool) -> pb.RepositoryIndexResponse:
    """Which models there are, and whether they accept requests."""
    found = pb.RepositoryIndexResponse()
    state, reason = (READY, "") if accepting else (UNAVAILABLE, "the server loads or drains")
    for model in models:
        found.models.add(name=model.name, version=model.version, state=state, reason=reason)
    return found


def _datatype(spec: TensorSpec) -> pb.DataType:
    return getattr(pb, f"TYPE_{spec.datatype}")  # type: ignore[no-any-return]


def _dims(spec: TensorSpec, model: Model) -> tuple[int, ...]:
    return spec.shape[1:] if model.joins else spec.shape


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


def _parts(parts: Parts) -> dict[str, pb.StatisticDuration]:
    return {
        "compute_input": _duration(parts.input),
        "compute_infer": _duration(parts.infer),
        "compute_output": _duration(parts.output),
    }
