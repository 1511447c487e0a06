"""What can be wrong with a request, each kind with the status of its answer; nothing else is blamed on a client."""

from __future__ import annotations

import grpc


class InferenceError(Exception):
    """Base of everything the server refuses on purpose; messages name what was found, what was expected, the remedy.

    Attributes:
        code: Status of the answer.
    """

    code = grpc.StatusCode.UNKNOWN


class InvalidRequestError(InferenceError):
    """A request that no model of this name could answer: wrong tensors, shapes, datatypes or sizes."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(InferenceError):
    """A model or a version that the server does not have."""

    code = grpc.StatusCode.NOT_FOUND


class ExhaustedError(InferenceError):
    """A tenant whose queue is full or that has no share at all."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ExpiredError(InferenceError):
    """A request whose deadline passed before its turn came; it was not computed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(InferenceError):
    """A server that still loads its models, or that drains before it ends."""

    code = grpc.StatusCode.UNAVAILABLE


class FailedError(InferenceError):
    """A model that raised an error while it computed a request it had accepted."""

    code = grpc.StatusCode.INTERNAL


class AbandonedError(Exception):
    """A computation that stopped because nobody waits for its result any more."""


class ModelError(Exception):
    """Models that cannot be loaded as asked; the server does not start with less than it was told to serve."""
