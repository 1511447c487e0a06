"""The two headline claims, simulated: what admission control buys, and what a reservation isolates from."""
