"""Domains that promise and reserve, and the steps between an intent and a reservation; no switch is programmed here."""
