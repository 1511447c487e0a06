"""Scenario files: what may be asked for, and one frozen description of what was asked."""
