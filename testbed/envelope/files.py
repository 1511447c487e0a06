"""Keys, roots and envelopes as files: what the `testbed envelope` verbs do, without printing.

A federation that grows beyond one folder keeps its private keys apart; nothing here needs more than one of them at a
time. Files are the exact signed bytes, so a file that an editor touched does not verify.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.envelope import strict_json
from testbed.envelope.composition import Path as PromisePath
from testbed.envelope.descriptor import PAYLOAD_TYPE, Envelope
from testbed.envelope.dsse import Sealed
from testbed.envelope.errors import KeyRefusedError, MalformedError
from testbed.envelope.keys import PublicKey, SigningKey
from testbed.envelope.store import EnvelopeStore, issue, verify
from testbed.envelope.trust import MAX_ROOT_BYTES, Role, Root
from testbed.envelope.trust import PAYLOAD_TYPE as ROOT_PAYLOAD_TYPE

ROOT_FILE = "root.json"

MAX_MEMORY_BYTES = 16 * 1024 * 1024
_MAX_MEMORY_CONTAINERS = 1 << 17
"""Room for some forty thousand offers, each an object with an object and a list inside."""


@dataclass(frozen=True, slots=True)
class Federation:
    """The files of a new federation.

    Attributes:
        root: The signed trust root, to be given to everybody.
        root_keys: Private keys that sign the next root; to be kept offline, each by somebody else.
        domain_keys: Domain to the private key that signs its envelopes.
    """

    root: Path
    root_keys: tuple[Path, ...]
    domain_keys: dict[str, Path]


def make_federation(
    folder: Path, domains: Sequence[str], *, federation: str, not_after_s: int, root_keys: int = 1, threshold: int = 1
) -> Federation:
    """Make keys and a first root in a new or empty folder.

    Args:
        folder: Where to write `root.json` and, for each of its keys and each domain, `root-<n>` or `<domain>` with the
            endings `.key` and `.pub`.
        domains: Names of the domains, each with one key.
        federation: Name of the federation.
        not_after_s: Last second of the root, Unix time.
        root_keys: How many keys sign roots.
        threshold: How many of them must.

    Raises:
        KeyRefusedError: The folder holds a root already, or cannot be written.
        MalformedError: Names or numbers no root may have.
    """
    signers = {name: SigningKey.generate() for name in domains}
    keepers = [SigningKey.generate() for _ in range(root_keys)]
    root = Root(
        federation=federation,
        version=1,
        not_after_s=not_after_s,
        keys={key.key_id: key.public_key for key in (*signers.values(), *keepers)},
        root=Role(frozenset(key.key_id for key in keepers), threshold),
        domains={name: Role(frozenset({key.key_id}), 1) for name, key in signers.items()},
    )
    files = Federation(
        folder / ROOT_FILE,
        tuple(folder / f"root-{number}.key" for number in range(1, root_keys + 1)),
        {name: folder / f"{name}.key" for name in signers},
    )
    _make_folder(folder, (files.root, *files.root_keys, *files.domain_keys.values()))
    named = zip((*files.root_keys, *files.domain_keys.values()), (*keepers, *signers.values()), strict=True)
    for path, key in named:
        key.save(path)
        key.public_key.save(path.with_name(path.name.removesuffix(".key") + ".pub"))
    files.root.write_bytes(root.sign(keepers))
    return files


def read_root(paths: Sequence[Path]) -> Root:
    """Follow a chain of roots.

    Args:
        paths: The root obtained through a trusted channel, then its successors in order.

    Raises:
        RefusedError: The chain is broken.
    """
    first, *successors = paths
    with _naming(first):
        root = Root.first(_read(first, MAX_ROOT_BYTES))
    for path in successors:
        with _naming(path):
            root = root.successor(_read(path, MAX_ROOT_BYTES))
    return root


def rotate_file(
    paths: Sequence[Path],
    keys: Sequence[Path],
    *,
    not_after_s: int,
    root_keys: Sequence[Path] = (),
    threshold: int | None = None,
    domains: Sequence[tuple[str, Path]] = (),
    removed: Sequence[str] = (),
) -> bytes:
    """Draft the next root and sign it with the keys at hand; others add theirs by `cosign_file`.

    Args:
        paths: The present root, as `read_root` takes it.
        keys: Private keys, of the present root or of the next one.
        not_after_s: Last second of the next root, Unix time.
        root_keys: Public keys that sign roots from now on; none keeps the present ones.
        threshold: How many of them must; None keeps the present number.
        domains: Domain and public key; a domain named here has exactly the keys named with it.
        removed: Domains that leave.

    Raises:
        RefusedError: The present root or a key is refused, or the next root would contradict itself.
    """
    held: dict[str, list[PublicKey]] = {}
    for name, path in domains:
        held.setdefault(name, []).append(PublicKey.load(path))
    candidate = read_root(paths).rotated(
        not_after_s=not_after_s,
        root_keys=[PublicKey.load(path) for path in root_keys],
        threshold=threshold,
        domains=held,
        removed=removed,
    )
    return candidate.sign([SigningKey.load(key) for key in keys])


def cosign_file(path: Path, keys: Sequence[Path]) -> bytes:
    """Add signatures to an envelope or a root, after reading that it is one.

    Args:
        path: The document, signed by at least one key.
        keys: Private keys to add.

    Raises:
        RefusedError: It is neither, or a key cannot be used.
    """
    with _naming(path):
        data = _read(path, MAX_ROOT_BYTES)
        sealed = Sealed.from_bytes(data, PAYLOAD_TYPE, ROOT_PAYLOAD_TYPE, max_bytes=MAX_ROOT_BYTES)
        document = sealed.read(str(path))
        if sealed.payload_type == PAYLOAD_TYPE:
            Envelope.from_dict(document)
        else:
            Root.from_dict(document)
    return sealed.cosigned([SigningKey.load(key) for key in keys]).to_bytes()


def issue_file(draft: Path, keys: Sequence[Path]) -> bytes:
    """Sign an envelope written by a person: JSON of the wire form, in any layout.

    Args:
        draft: The unsigned envelope.
        keys: Private keys of its domain.

    Raises:
        RefusedError: The draft is no envelope, or a key cannot be used.
    """
    with _naming(draft):
        envelope = Envelope.from_dict(strict_json.loads(_read(draft), str(draft), canonical=False))
    return issue(envelope, [SigningKey.load(key) for key in keys])


def verify_file(path: Path, root: Root, now_s: float, memory: Path | None = None) -> Envelope:
    """Verify one envelope.

    Args:
        path: The signed envelope.
        root: The trusted root.
        now_s: Unix time.
        memory: Where the root followed and accepted version numbers are kept between calls; without it rollback and
            replay go unnoticed.

    Raises:
        RefusedError: The reason for which it is refused; `MalformedError` too for a memory that is none.
        OSError: The memory cannot be written.
    """
    data = _read(path)
    if memory is None:
        root.require_current(now_s)
        with _naming(path):
            return verify(data, root.trust, now_s)
    store = EnvelopeStore(root, _read_memory(memory) if memory.exists() else None)
    try:
        with _naming(path):
            return store.accept(data, now_s)
    finally:
        # A root that was followed stays followed, whatever became of the envelope.
        draft = memory.with_name(memory.name + ".new")
        draft.write_bytes(strict_json.dumps(store.remember()))
        draft.replace(memory)


def _read_memory(path: Path) -> strict_json.Json:
    try:
        return strict_json.loads(
            _read(path, MAX_MEMORY_BYTES),
            str(path),
            max_bytes=MAX_MEMORY_BYTES,
            max_containers=_MAX_MEMORY_CONTAINERS,
        )
    except MalformedError as error:
        raise MalformedError(f"{error}; name another file, or remove this one and trust nothing older") from error


def read_unverified(path: Path) -> Envelope:
    """Read what an envelope claims, without believing it.

    Raises:
        MalformedError: It is no envelope.
    """
    with _naming(path):
        return Envelope.from_dict(Sealed.from_bytes(_read(path), PAYLOAD_TYPE).read(str(path)))


def compose_files(paths: Sequence[Path], root: Root | None, now_s: float) -> PromisePath:
    """Compose envelopes in the order of the path; unverified where no root is given.

    Raises:
        RefusedError: One is refused, or they do not belong together.
    """
    return PromisePath.of(read_unverified(path) if root is None else verify_file(path, root, now_s) for path in paths)


def _make_folder(folder: Path, files: Sequence[Path]) -> None:
    if len(set(files)) != len(files) or any(path.parent != folder for path in files):
        raise MalformedError(f"{folder}: files {[path.name for path in files]} must differ; give domains plain names")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KeyRefusedError(f"{folder}: {os.strerror(error.errno or 0)}; choose another folder") from error
    if existing := [path.name for path in files if path.exists()]:
        raise KeyRefusedError(f"{folder}: holds {existing} already; keys are never overwritten, choose another folder")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Of a document that is malformed, say in which file it is: a command may have been given several."""
    try:
        yield
    except MalformedError as error:
        if str(error).startswith(str(path)):
            raise
        raise MalformedError(f"{path}: {error}") from error


def _read(path: Path, max_bytes: int = strict_json.MAX_BYTES) -> bytes:
    """The file, or one byte more than is accepted of it, so that a huge one is refused by its size."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise MalformedError(f"{path}: {error.strerror}; expected a file that can be read") from error
