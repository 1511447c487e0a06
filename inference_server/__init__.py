"""A standalone gRPC server of PyTorch models; imports nothing of testbed."""
