"""Service: what a domain, a scheduler or a compute stage does for a flow."""
