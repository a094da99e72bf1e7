"""Who may talk to whom: one CURVE key pair for each agent and operator, in a folder.

A folder holds ``NAME.key``, the public key of everyone who is trusted, and ``NAME.key_secret`` of those who work on
this machine. A connection is encrypted and both sides prove who they are; a key that is not in the folder is refused.
Taking a file away ends its owner's rights, and another key in it is another owner, without a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.auth.asyncio import AsyncioAuthenticator

from portend.errors import ConfigError, StorageError, law

__all__ = ["OPERATOR", "Keys", "Trust", "Who", "authenticate", "check_name", "load_keys", "make_keys"]

_LOG: Final = logging.getLogger("portend.service")

OPERATOR: Final = "coordinator"
"""Name of the key that may give agents orders and samples; tiers' keys may only send data."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY: Final = re.compile(rb"[\x21-\x7e]{40}")  # Z85
_DOMAIN: Final = "portend"


def check_name(name: str) -> str:
    """Return ``name`` if it can name a key and its files; InvalidValue if not."""
    law(
        _NAME.fullmatch(name) is not None,
        f"a name has 1–64 letters, digits, dots, underscores or hyphens and begins with a letter or digit, "
        f"but got {name!r:.80}",
    )
    return name


def make_keys(folder: str | Path, names: Iterable[str]) -> dict[str, bool]:
    """Make a key pair for each name that has none yet; return whether each was made now.

    Secret keys can be read by their owner alone (0600), and so can the folder if it is made here (0700).

    Raises:
        InvalidValue: a name cannot be that of a file. StorageError: the folder cannot be written.
    """
    place, made = Path(folder), {}
    for name in map(check_name, names):
        made[name] = not _public(place, name).exists()
        if not made[name]:
            continue
        before = os.umask(0o077)
        try:
            place.mkdir(parents=True, exist_ok=True)
            create_certificates(place, name)
            _public(place, name).chmod(0o644)
        except OSError as error:
            raise StorageError(f"cannot write keys to {place} ({error}); choose another folder") from None
        finally:
            os.umask(before)
    return made


class Trust:
    """The public keys in a folder, as they were when it was last looked at.

    A file that holds no key is left out and named once in the log. What cannot be read at all (no file descriptors, a
    disk that fails) stays as it was read last, so that nobody is locked out by it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[str, tuple[tuple[int, ...], bytes]] = {}  # by name: what the file was, and its key
        self._names: dict[bytes, str] = {}
        self._said: set[str] = set()
        self.look()

    def look(self) -> None:
        """Read the files that are new or were changed, and forget those that are gone."""
        try:
            found = {path.stem: path for path in self.folder.iterdir() if path.suffix == ".key"}
        except OSError as error:
            self._say(f"{self.folder} cannot be listed ({error}); the keys that were read before still count")
            return
        known, said = self._read, set()
        self._read = {}
        for name, path in sorted(found.items()):
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{path} is no file; take it away")
                now = (status.st_ino, status.st_size, status.st_mtime_ns)
                if name in known and known[name][0] == now:
                    self._read[name] = known[name]
                else:
                    self._read[name] = (now, _read(path)[0])
            except OSError as error:
                said.add(self._say(f"{path} cannot be read ({error}); what it held before still counts"))
                if name in known:
                    self._read[name] = known[name]
            except ConfigError as error:
                said.add(self._say(f"{error}; until then it lets nobody in"))
        self._said = said
        self._names = {key: name for name, (_, key) in self._read.items()}

    def _say(self, complaint: str) -> str:
        if complaint not in self._said:
            self._said.add(complaint)
            _LOG.warning("%s", complaint)
        return complaint

    def name_of(self, key: bytes) -> str:
        """Return whose public key it is; empty if it is nobody's."""
        return self._names.get(key, "")

    def key_of(self, name: str) -> bytes | None:
        """Return the public key of that name; None if there is none."""
        return self._read[name][1] if name in self._read else None


@dataclass(frozen=True, slots=True)
class Keys:
    """Our own key pair, and who else is trusted.

    Attributes:
        name: ours. public, secret: 40 characters of Z85 each. trust: whom the folder of the pair trusts.
    """

    name: str
    public: bytes
    secret: bytes
    trust: Trust = field(compare=False)

    def __repr__(self) -> str:
        return f"Keys({self.name!r})"  # no secret in a log

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Let only those in who are trusted, before the socket is bound; ``authenticate`` has to run."""
        socket.curve_server = True
        socket.curve_secretkey = self.secret
        socket.zap_domain = _DOMAIN.encode()

    def call(self, socket: zmq.Socket[Any], name: str) -> None:
        """Connect to nobody but the one that is called ``name``.

        Raises:
            ConfigError: the folder has no public key of that name.
        """
        self.trust.look()
        theirs = self.trust.key_of(check_name(name))
        if theirs is None:
            raise ConfigError(
                f"there is no public key {_public(self.trust.folder, name)}; copy it from where `portend keys` made "
                "it, or make it there"
            )
        socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = self.public, self.secret, theirs


def load_keys(folder: str | Path, name: str) -> Keys:
    """Return the key pair of ``name``.

    Raises:
        ConfigError: there is none, or others could read it.
    """
    path = Path(folder) / f"{check_name(name)}.key_secret"
    if not path.is_file():
        raise ConfigError(f"there is no secret key {path}; make one with `portend keys {folder} {name}`")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(f"others than its owner may read {path}; run `chmod 600 {path}`, or make new keys")
    try:
        public, secret = _read(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); check its permissions") from None
    if secret is None:
        raise ConfigError(f"{path} holds no secret key; make one with `portend keys`")
    return Keys(name, public, secret, Trust(folder))


def _public(folder: Path, name: str) -> Path:
    return folder / f"{name}.key"


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """The public and the secret key in a file; ConfigError if it holds none, OSError if it cannot be read."""
    try:
        public, secret = load_certificate(path)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as a key ({error}); copy it again") from None
    if any(not _KEY.fullmatch(key) for key in (public, secret) if key is not None):
        raise ConfigError(f"{path} holds no CURVE key of 40 characters; copy it again")
    return public, secret


class Who(AsyncioAuthenticator):
    """Answers ZeroMQ's question whether a key may connect, whatever happens; each message then names its key."""

    def __init__(self, context: Any, trust: Trust) -> None:
        super().__init__(context)
        self._trust = trust
        self.refused = 0
        """How many connections with keys that are not trusted were refused."""
        self.configure_curve_callback(_DOMAIN, self)

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answer one question; an error costs one connection, never the task that answers."""
        try:
            await super().handle_zap_message(msg)
        except Exception:
            _LOG.exception("a connection could not be judged")
            with contextlib.suppress(zmq.ZMQError, IndexError):  # the question may be answered already
                self._send_zap_reply(msg[1], b"500", b"try again")

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the key may connect."""
        self._trust.look()
        known = bool(self._trust.name_of(key))
        self.refused += not known
        return known


def authenticate(context: Any, keys: Keys) -> Who:
    """Start to answer for a context, within a running event loop; stop it with ``stop``."""
    who = Who(context, keys.trust)
    who.start()
    return who
