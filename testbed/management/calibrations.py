"""What a domain has measured of its own service, on its own disk, from which it signs its envelopes.

Whoever measures (a run's warm-up, an operator's monitoring) writes the file in one step; the agent reads it at every
offer. A calibration speaks about one tenant in one stage at one rate and is used for nothing else: lingering excess
cannot be converted. What the samples support is `testbed.envelope.calibration`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from testbed.envelope.calibration import Calibration
from testbed.envelope.descriptor import Evidence, Stage
from testbed.envelope.tail import Stochastic
from testbed.errors import EnvelopeError, ReservationError

Supported = tuple[Stochastic | None, Evidence]


@dataclass(frozen=True)
class Calibrations:
    """The calibrations of one domain.

    Attributes:
        path: The file; None, or one that does not exist, for a domain that has measured nothing yet.
    """

    path: Path | None = None

    def of(self, tenant: str, rate_bps: int, stage: Stage = Stage.NETWORK) -> Supported | None:
        """What may be signed for a tenant that reserves this rate of a stage; None where nothing was measured at it.

        Raises:
            ReservationError: The file is not what `write` wrote.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            found = json.loads(self.path.read_bytes()).get(_entry(tenant, stage))
            if found is None or found["rate_bps"] != rate_bps:
                return None
            tail = None if found["stochastic"] is None else Stochastic.from_dict(found["stochastic"])
            return tail, Evidence.from_dict(found["evidence"])
        except (ValueError, AttributeError, KeyError, TypeError, EnvelopeError) as error:
            raise ReservationError(
                f"calibrations {self.path}: found no calibration of {tenant} ({error}), expected what this version "
                "writes; measure again, or delete the file"
            ) from error

    def write(
        self,
        network: Mapping[tuple[str, int], Calibration],
        compute: Mapping[tuple[str, int], Calibration] = MappingProxyType({}),
    ) -> None:
        """Replace everything known by these calibrations of both stages, by tenant and reserved rate in bit/s."""
        if self.path is None:
            raise ValueError("calibrations: no file to write to")
        written = {
            _entry(tenant, stage): {
                "rate_bps": rate_bps,
                "stochastic": None if found.stochastic is None else found.stochastic.to_dict(),
                "evidence": found.evidence.to_dict(),
            }
            for stage, supported in ((Stage.NETWORK, network), (Stage.COMPUTE, compute))
            for (tenant, rate_bps), found in supported.items()
        }
        swap = self.path.with_suffix(".new")
        swap.write_text(json.dumps(written), encoding="utf-8")
        swap.replace(self.path)


def _entry(tenant: str, stage: Stage) -> str:
    """Key of the file; no tenant's name has a slash in it."""
    return tenant if stage is Stage.NETWORK else f"{tenant}/{stage}"
