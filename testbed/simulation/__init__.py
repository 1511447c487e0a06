"""Packet-level Monte Carlo of a scenario: what an emulated network cannot reach, with the same folder at the end.

A window of traffic is drawn in chunks, pushed through the domains as waves of packets, and counted; nothing grows with
the number of packets. Times are integer picoseconds (`testbed.simulation.clock`). Nothing here needs privileges.
"""
