"""Guardrails: the part of an envelope that holds surely, because meters and queues enforce it.

A guardrail is checked against the others here; whether the switches really enforce it is read back elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.envelope.fields import ONE_IN_PPB, ONE_IN_PPM, Problems, Record


@dataclass(frozen=True, slots=True)
class Guardrails(Record):
    """What holds surely, because the domain enforces it.

    Attributes:
        reserved_rate_bps: Rate R of the tenant's queue, bits/s.
        meter_rate_bps: Rate r of the tenant's meter, below R, else a backlog never drains.
        peak_rate_bps: Largest rate at which the tenant may send, None where nothing limits it.
        burst_bits: Burst of the meter in this domain.
        latency_ns: T: a conforming packet leaves at most T after an ideal FIFO of rate R would start to serve it,
            unless the stochastic part says otherwise.
        host_allowance_ns: The part of `latency_ns` granted to the host that emulates the domain; a run whose host
            needed more is invalid rather than a breach.
        largest_packet_bits: Largest packet (compute: largest request) the promise covers.
        delay_cap_ns: No packet lags further behind T than this; one that would is dropped or counted as a miss.
        loss_cap_ppb: Largest share of conforming packets lost.
        error_cap_ppb: Largest share of conforming requests answered by an error.
        load_cap_ppm: Largest mean offered load, in millionths of R, up to which all of this is promised.
    """

    reserved_rate_bps: int
    meter_rate_bps: int
    peak_rate_bps: int | None
    burst_bits: int
    latency_ns: int
    host_allowance_ns: int
    largest_packet_bits: int
    delay_cap_ns: int
    loss_cap_ppb: int
    error_cap_ppb: int
    load_cap_ppm: int

    def __post_init__(self) -> None:
        """Raises `MalformedError` naming every field out of range and every contradiction."""
        problems = Problems("guardrails")
        problems.integer("reserved_rate_bps", self.reserved_rate_bps, 1)
        problems.integer("meter_rate_bps", self.meter_rate_bps, 1)
        if self.peak_rate_bps is not None:
            problems.integer("peak_rate_bps", self.peak_rate_bps, 1)
        problems.integer("burst_bits", self.burst_bits, 1)
        problems.integer("latency_ns", self.latency_ns, 0)
        problems.integer("host_allowance_ns", self.host_allowance_ns, 0)
        problems.integer("largest_packet_bits", self.largest_packet_bits, 1)
        problems.integer("delay_cap_ns", self.delay_cap_ns, 0)
        problems.integer("loss_cap_ppb", self.loss_cap_ppb, 0, ONE_IN_PPB)
        problems.integer("error_cap_ppb", self.error_cap_ppb, 0, ONE_IN_PPB)
        problems.integer("load_cap_ppm", self.load_cap_ppm, 1, ONE_IN_PPM)
        if not problems:
            self._relations(problems)
        problems.check()

    def _relations(self, problems: Problems) -> None:
        if self.meter_rate_bps >= self.reserved_rate_bps:
            problems.add(
                f"meter_rate_bps {self.meter_rate_bps} is not below reserved_rate_bps {self.reserved_rate_bps}, so a "
                "backlog would never drain; lower the meter or reserve more"
            )
        if self.peak_rate_bps is not None and self.peak_rate_bps < self.meter_rate_bps:
            problems.add(
                f"peak_rate_bps {self.peak_rate_bps} is below meter_rate_bps {self.meter_rate_bps}; lower the meter"
            )
        if self.burst_bits < self.largest_packet_bits:
            problems.add(
                f"burst_bits {self.burst_bits} is below largest_packet_bits {self.largest_packet_bits}, so the meter "
                "would drop every such packet; allow a larger burst"
            )
        if self.host_allowance_ns > self.latency_ns:
            problems.add(
                f"host_allowance_ns {self.host_allowance_ns} is above latency_ns {self.latency_ns}, of which it is a "
                "part; raise latency_ns"
            )

    @property
    def latency_s(self) -> float:
        """T in seconds, allowance included."""
        return self.latency_ns / 1e9

    @property
    def host_allowance_s(self) -> float:
        """The host's part of T in seconds."""
        return self.host_allowance_ns / 1e9

    @property
    def delay_cap_s(self) -> float:
        """Largest excess over T in seconds."""
        return self.delay_cap_ns / 1e9

    @property
    def loss_cap(self) -> float:
        """Largest share of packets lost."""
        return self.loss_cap_ppb / 1e9

    @property
    def error_cap(self) -> float:
        """Largest share of requests answered by an error."""
        return self.error_cap_ppb / 1e9

    @property
    def load_cap(self) -> float:
        """Largest mean load relative to R."""
        return self.load_cap_ppm / 1e6
