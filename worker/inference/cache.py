"""What was computed before: a table in the process, and a database for the processes of a host.

Both hold digests and scores only, never a text. The table is keyed by a digest of the text, the
database by a digest of model and token ids. The database never delays a label: a thread of its own
opens and writes it, and what it cannot do at once is skipped and counted.
"""

from __future__ import annotations

import queue
import threading
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from worker.inference.database import DamagedError, Database, identity_of, move_aside
from worker.logs.logger import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_KEY_BYTES: Final = 16
_CHECKSUM_BYTES: Final = 8
_OPEN_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_MOST_WRITES_WAITING: Final = 16
_KEYS_PER_QUERY: Final = 500


def text_key(text: str) -> bytes:
    """Return the digest that stands for a text in memory.

    Raises:
        TypeError: the text is not a string.

    """
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, not {type(text).__name__}")
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def tokens_key(namespace: bytes, token_ids: Iterable[int]) -> bytes:
    """Return the digest of token ids under a model, which `namespace` (up to 64 bytes) stands for."""
    ids = array("I", token_ids).tobytes()
    return blake2b(ids, digest_size=_KEY_BYTES, key=namespace).digest()


class MemoryCache:
    """A table of at most `entries`, which forgets what was seen once before what was used again.

    Most texts of a chat never come again, and must not push out those that do. So there are two
    generations of entries that were put and never read, and two of entries that were read since,
    which take up to four fifths of the room. When a young generation is full, it becomes the old
    one, and what was old is forgotten. These plain dicts cost 150 to 200 bytes an entry, where an
    exact LRU costs 280 to 310 (`benchmarks.caches`).
    """

    def __init__(self, entries: int) -> None:
        """Create an empty table; with 0 `entries` it stays empty."""
        self._entries = entries
        # Half of four fifths: how many entries one generation of those that were read may have.
        self._used_half = entries * 2 // 5
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._used: dict[bytes, bytes] = {}
        self._used_old: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._young) + len(self._old) + len(self._used) + len(self._used_old)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None, and count the entry as used."""
        value = self._used.get(key)
        if value is not None:
            return value
        if self._used_half == 0:
            return self._young.get(key, self._old.get(key))
        for table in (self._young, self._used_old, self._old):
            if (value := table.pop(key, None)) is not None:
                if len(self._used) >= self._used_half:
                    self._used_old, self._used = self._used, {}
                self._used[key] = value
                break
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Store a value, in place of the one that the key has."""
        if self._entries == 0:
            return
        if key not in self._young:
            for table in (self._used, self._used_old, self._old):
                table.pop(key, None)
            room = self._entries - len(self._used) - len(self._used_old)
            young = len(self._young)
            if 2 * young >= room or young + len(self._old) >= room:
                self._old, self._young = self._young if young < room else {}, {}
        self._young[key] = value


class DiskCache:
    """A database in a folder that the processes of a host share.

    Each value is stored with a checksum of itself and its key, so that a damaged one is a miss and
    never a wrong label. A damaged database is moved aside once. The first trouble is logged; labels
    go on without the cache.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open the folder in the background; until that is done, every lookup is a miss."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._database: Database | None = None
        # The damaged database that is to be replaced; one is, in the life of a process.
        self._damaged: tuple[int, int] | None = None
        self._replaced = False
        self._trouble_logged = False
        # None asks the thread to end.
        self._writes: queue.Queue[Sequence[tuple[bytes, bytes]] | None] = queue.Queue(
            _MOST_WRITES_WAITING
        )
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._open_and_write, name="cache", daemon=True)
        self.writes_skipped = 0
        self._thread.start()
        self._opened.wait(_OPEN_SECONDS)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the values that are there; the search ends at the first trouble."""
        found: dict[bytes, bytes] = {}
        database = self._database
        if database is None:
            return found
        wanted = list(keys)
        try:
            for begin in range(0, len(wanted), _KEYS_PER_QUERY):
                for key, stored in database.find(wanted[begin : begin + _KEYS_PER_QUERY]):
                    if (value := self._verified(key, stored)) is not None:
                        found[key] = value
        except DamagedError:
            self._give_up(database)
        except Exception as error:  # noqa: BLE001 - whatever fails in a cache, labels go on
            self._log_first_trouble("read", error)
        return found

    def put_many(self, values: Mapping[bytes, bytes]) -> None:
        """Hand values to the thread that writes, or skip them where it is behind."""
        items = [(key, value + _checksum(key, value)) for key, value in values.items()]
        try:
            self._writes.put_nowait(items)
        except queue.Full:
            self.writes_skipped += len(items)

    def close(self) -> None:
        """Finish the writes that wait, for a few seconds at most; the rest is lost."""
        try:
            self._writes.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)
        if self._database is not None:
            # The thread closed its own connection; this closes the one that read.
            self._database.close()

    def _open_and_write(self) -> None:
        before = identity_of(self._folder)
        try:
            self._database = Database(self._folder, self._max_bytes)
        except DamagedError:
            self._replace(before)
        except Exception as error:  # noqa: BLE001 - whatever fails in a cache, labels go on
            self._log_first_trouble("open", error)
        self._opened.set()
        while (items := self._writes.get()) is not None:
            if self._damaged is not None:
                self._replace(self._damaged)
            self._write(items)
        if self._database is not None:
            self._database.close()

    def _write(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        database, written = self._database, False
        if database is not None:
            try:
                written = database.insert(items)
            except DamagedError:
                self._give_up(database)
            except Exception as error:  # noqa: BLE001 - whatever fails in a cache, labels go on
                self._log_first_trouble("write", error)
        if not written:
            self.writes_skipped += len(items)

    def _give_up(self, database: Database) -> None:
        """Use a damaged database no more; the thread that writes replaces it."""
        database.close()
        if self._database is database:
            self._database, self._damaged = None, database.identity

    def _replace(self, damaged: tuple[int, int] | None) -> None:
        """Move a damaged database aside, and begin a fresh one."""
        self._damaged = None
        if self._replaced:
            self._log_first_trouble("read", DamagedError())
            return
        self._replaced = True
        log.warning(
            "disk cache is damaged: it is moved aside, and a fresh one begins",
            folder=str(self._folder),
            aside="cache.db.damaged",
        )
        try:
            move_aside(self._folder, damaged)
            self._database = Database(self._folder, self._max_bytes)
        except Exception as error:  # noqa: BLE001 - whatever fails in a cache, labels go on
            self._log_first_trouble("open", error)

    def _verified(self, key: bytes, stored: bytes) -> bytes | None:
        value, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        if checksum == _checksum(key, value):
            return value
        self._log_first_trouble("read", ValueError())
        return None

    def _log_first_trouble(self, step: str, error: Exception) -> None:
        if not self._trouble_logged:
            self._trouble_logged = True
            log.warning(
                "disk cache in trouble: labels stay right, but are computed again",
                folder=str(self._folder),
                step=step,
                error=type(error).__name__,
                advice="check the folder's owner, rights and space, or remove it",
            )


def _checksum(key: bytes, value: bytes) -> bytes:
    return blake2b(value, digest_size=_CHECKSUM_BYTES, key=key).digest()
