"""Who shares what with whom in a domain, by what its ledger holds, and whether everybody's promise still stands."""

from __future__ import annotations

import json
from collections.abc import Iterable

from testbed.management import market
from testbed.management.admission import Crowd, Guest
from testbed.management.entry import Entry


class Crowds:
    """Everybody on the domain's ports and at its server.

    Args:
        entries: All that hold something.

    Raises:
        ReservationError: Somebody's promise breaks.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.count(entries)

    def count(self, entries: Iterable[Entry]) -> None:
        """Count again from the beginning; one that replaces another counts as the heavier and tenderer of the two.

        Raises:
            ReservationError: Somebody's promise breaks; those counted before are still counted.
        """
        counted = {market.NETWORK: Crowd(), market.COMPUTE: Crowd()}
        together: dict[tuple[str, str], Guest] = {}
        for entry in entries:
            for resource, guest in _guests(entry):
                key = (entry.place, resource)
                known = together.get(key, guest)
                together[key] = Guest(entry.tenant, max(known.weight, guest.weight), min(known.bears, guest.bears))
        for (_, resource), guest in together.items():
            counted[resource].admit(guest)
        self._by_resource = counted

    def admit(self, entry: Entry) -> None:
        """Let one more in everywhere or nowhere; raises `ReservationError` naming whose promise would break."""
        guests = _guests(entry)
        for resource, guest in guests:
            self._by_resource[resource].require(guest)
        for resource, guest in guests:
            self._by_resource[resource].admit(guest)


def _guests(entry: Entry) -> list[tuple[str, Guest]]:
    crowd = json.loads(entry.body)["crowd"]
    return [(resource, Guest(entry.tenant, weight, bears)) for resource, (weight, bears) in crowd.items()]
