"""Judges promises from latencies: compliance, extreme quantiles with honest uncertainty, and who is to blame.

Everything here works on plain arrays in the order of intended sending, whatever produced them: an emulated run, a
simulated one or a file from elsewhere. It knows nothing of networks, scenarios or run folders, and it never decides
whether a measurement may be trusted (the fidelity gates of `testbed.telemetry` do).
"""

from __future__ import annotations
