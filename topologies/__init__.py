"""Mininet topologies and the scenario files that run on them."""
