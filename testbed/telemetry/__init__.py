"""Turns what was seen on the wire into per-packet delays, and says whether this host could be trusted to see it.

Captures at every domain border become `TenantSamples`; an ideal queue fed the same arrivals gives each domain's lag and
lingering excess; fidelity gates judge the host, never the theory. Nothing here sends packets, installs anything or
knows a bound.
"""
