"""Testbed that validates tail-latency promises on a real data plane.

Domains promise, the network enforces, the measurement judges: this package holds every step between a scenario file
and a verdict with the bound beside the measurement. It holds no switch programming (`controller`) and no model server
(`inference_server`); both are programs of their own that know nothing of this package.
"""

__version__ = "0.1.0"
