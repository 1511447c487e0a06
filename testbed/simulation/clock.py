"""Time in the simulator: integer picoseconds, in int64.

Floating seconds lose a tenth of a nanosecond after some days and add up their rounding in every busy period; integers
lose nothing to either. The one approximation is that serving a packet takes the picosecond nearest to size/rate. It is
exact for every rate that divides 10^12 bit/s (1, 10, 40, 100 Mbit/s, 1 Gbit/s and so on). For any other rate each
packet of a busy period adds at most half a picosecond to the departure times behind it, which is what a server does
whose rate is wrong by one part in 10^5 at 10 Gbit/s and 66-byte frames, and by one in 10^9 at 10 Mbit/s and 1,250-byte
frames: a departure differs from that of real numbers by less than 1 ns until 2,000 packets have kept one queue busy
without a pause.
"""

from __future__ import annotations

from testbed.errors import ScenarioError

PS_PER_S = 10**12

NEVER = 2**62
"""Later than every event; 53 days."""


def to_ps(seconds: float) -> int:
    """The picosecond nearest to `seconds`.

    Raises:
        ScenarioError: Beyond what the simulator's clock can count.
    """
    ps = round(seconds * PS_PER_S)
    if not -NEVER < ps < NEVER:
        raise ScenarioError(
            f"simulated time: found {seconds:g} s, expected less than {NEVER / PS_PER_S:.0f} s (53 days), which is "
            "what 64-bit picoseconds hold; simulate several replications instead of one long window"
        )
    return ps


def ps_per_bit(rate_bps: float) -> float:
    """Service time of one bit in picoseconds.

    Raises:
        ScenarioError: Not a rate.
    """
    if not rate_bps > 0:
        raise ScenarioError(f"rate of a server: found {rate_bps} bit/s, expected a positive rate; correct it")
    return PS_PER_S / rate_bps
