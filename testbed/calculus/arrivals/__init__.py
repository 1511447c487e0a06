"""Arrivals: what a tenant may send, as contracts and as stochastic models."""
