"""A standalone gRPC server of PyTorch models that speaks the Open Inference Protocol; imports nothing of testbed.

`digits`, `protocol`, `tensors` and `generated` do without PyTorch, so that clients can import them in no time.
"""

__version__ = "0.1.0"
