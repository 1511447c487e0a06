"""The named reasons for which an envelope is refused.

Each class is one reason and each reason has one name, which is what logs, the command line and the tests show. Nothing
is decided here: the checks that raise these live where the thing they check is read.
"""

from __future__ import annotations

from typing import ClassVar

from testbed.errors import EnvelopeError


class RefusedError(EnvelopeError):
    """An envelope, a root or a key that is not accepted, and the name of the reason.

    Attributes:
        reason: Stable name of the reason, for logs and scripts.
    """

    reason: ClassVar[str] = "refused"


class MalformedError(RefusedError):
    """Bytes that are not exactly one canonical document of the expected schema."""

    reason = "malformed"


class KeyRefusedError(RefusedError):
    """A key that is weak, ambiguous, badly stored or not a key at all."""

    reason = "bad-key"


class UntrustedKeyError(RefusedError):
    """A signature by a key that the trust root does not know for this purpose."""

    reason = "untrusted-key"


class BadSignatureError(RefusedError):
    """A signature that does not fit the signed bytes."""

    reason = "bad-signature"


class ThresholdError(RefusedError):
    """Fewer distinct trusted signatures than the role demands."""

    reason = "below-threshold"


class WrongDomainError(RefusedError):
    """A domain that signed for another domain's subject."""

    reason = "wrong-domain"


class ExpiredError(RefusedError):
    """Used after its validity ended."""

    reason = "expired"


class NotYetValidError(RefusedError):
    """Used before its validity began."""

    reason = "not-yet-valid"


class RollbackError(RefusedError):
    """An older version than one already accepted for the same subject."""

    reason = "rollback"


class EqualVersionError(RefusedError):
    """The version already accepted, with other contents: the signer said two things under one number."""

    reason = "equal-version"


class ReplayError(RefusedError):
    """The very document already accepted, presented as if it were new."""

    reason = "replay"


class MixAndMatchError(RefusedError):
    """Genuine envelopes put together that were never issued to be used together."""

    reason = "mix-and-match"


class RootVersionError(RefusedError):
    """A root that is not the direct successor of the trusted one."""

    reason = "root-version"


class CalibrationError(RefusedError):
    """Samples that support no promise, or none of the kind asked for."""

    reason = "no-evidence"


class WrongRateError(RefusedError):
    """A tail measured at another rate than the one at which it is to be used."""

    reason = "wrong-rate"
