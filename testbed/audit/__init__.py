"""Judges promises from latencies: compliance, extreme quantiles with honest uncertainty, and who is to blame.

The statistics work on plain arrays in the order of intended sending, whatever produced them. `evidence`, `crossing` and
`folder` put them to what a run left, `table` and `stream` to latencies from elsewhere. Nothing here decides whether a
measurement may be trusted (the fidelity gates of `testbed.telemetry` do).
"""

from __future__ import annotations
