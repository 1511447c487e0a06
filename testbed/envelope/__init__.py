"""Tail-risk envelopes: what a domain promises, signed, checked and composed.

`descriptor` is the promise, `dsse` and `keys` sign it, `trust` says who may, `store` takes it from bytes to something
that may be relied on, `calibration` derives it from measurements and `composition` adds up a path. Delay bounds are
`testbed.calculus`'s business.
"""

from testbed.envelope.descriptor import Envelope, Evidence, Stage, Subject, Validity
from testbed.envelope.guardrails import Guardrails
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.envelope.store import EnvelopeStore, issue, verify
from testbed.envelope.tail import ExcessTail, Stochastic
from testbed.envelope.trust import Role, Root, Trust

__all__ = [
    "Envelope",
    "EnvelopeStore",
    "Evidence",
    "ExcessTail",
    "Guardrails",
    "PublicKey",
    "Role",
    "Root",
    "SigningKey",
    "Stage",
    "Stochastic",
    "Subject",
    "Trust",
    "Validity",
    "issue",
    "verify",
]
