"""What was computed before: a table in the process, and diskcache for the processes of a host.

Both keep digests and scores only, never a text. The table is keyed by a digest of the text, the
disk by a digest of model and token ids. The disk never holds a label up: it is opened and
written by a thread of its own, and what it cannot do at once is skipped and counted.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from array import array
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import diskcache

from worker.logs.logger import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_KEY_BYTES: Final = 16
_CHECK_BYTES: Final = 8
_BUSY_SECONDS: Final = 0.1
_OPEN_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
_WRITES_WAITING: Final = 16
_WRITE_TRIES: Final = 10
_KEYS_AT_ONCE: Final = 500
_INSERT: Final = """
    INSERT OR REPLACE INTO Cache (key, raw, store_time, access_time, mode, value)
    VALUES (?, 1, ?, ?, ?, ?)"""
_FORGET: Final = """
    DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache ORDER BY store_time LIMIT ?)"""
_FIND: Final = "SELECT key, mode, filename, value FROM Cache WHERE raw = 1 AND key IN ({})"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def text_key(text: str) -> bytes:
    """Return the digest of a text that stands for it in memory."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def tokens_key(namespace: bytes, token_ids: Iterable[int]) -> bytes:
    """Return the digest of token ids under a model; `namespace` is at most 64 bytes."""
    ids = array("I", token_ids).tobytes()
    return blake2b(ids, digest_size=_KEY_BYTES, key=namespace).digest()


class MemoryCache:
    """A bounded table of at most `entries`, which forgets what was seen once before what was used.

    Most texts of a chat never come again, and must not push out those that do. So there are two
    generations of what was seen once, and two, of four fifths at most, of what was used again: when
    a young one is full it becomes the old one, and what was old is forgotten. Plain dicts cost 150
    to 200 bytes an entry here, an exact LRU 280 to 310 (`benchmarks.caches`).
    """

    def __init__(self, entries: int) -> None:
        """Make an empty table; 0 entries remembers nothing."""
        self._entries = entries
        self._used_half = entries * 2 // 5
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._used: dict[bytes, bytes] = {}
        self._used_old: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._young) + len(self._old) + len(self._used) + len(self._used_old)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, and count it as used."""
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
        """Remember a value."""
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


class RawDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores bytes in the database and nothing else, nowhere else.

    diskcache's own unpickles what it reads and follows file names in rows (CVE-2025-69872).
    """

    def put(self, key: bytes) -> tuple[memoryview, bool]:
        """Turn a key into what the database holds."""
        return memoryview(_only_bytes(key)), True

    def get(self, key: object, raw: object) -> bytes:
        """Turn what the database holds into a key."""
        if not raw:
            raise ValueError("a cache key that is not raw")
        return _only_bytes(key)

    def store(
        self,
        value: bytes,
        read: object,  # noqa: ARG002 - what diskcache calls
        key: object = None,  # noqa: ARG002 - what diskcache calls
    ) -> tuple[int, int, None, memoryview]:
        """Turn a value into a row: size outside the database, mode, file name, value."""
        return 0, diskcache.core.MODE_RAW, None, memoryview(_only_bytes(value))

    def fetch(
        self,
        mode: int,
        filename: str | None,
        value: object,
        read: object,  # noqa: ARG002 - what diskcache calls
    ) -> bytes:
        """Turn a row into a value."""
        if mode != diskcache.core.MODE_RAW or filename is not None:
            raise ValueError("a cache value that is not raw")
        return _only_bytes(value)

    def remove(self, file_path: str) -> None:
        """Do nothing: no row of ours has a file, and one that names a file was tampered with."""


class DiskCache:
    """A folder shared by the processes of a host.

    Each value carries a check of itself and its key: a damaged one is a miss.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open the folder in the background; until that is done, every lookup is a miss."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._cache: Any = None
        self._warned = False
        self._writes: queue.Queue[Sequence[tuple[bytes, bytes]] | None] = queue.Queue(
            _WRITES_WAITING
        )
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._open_and_write, name="cache", daemon=True)
        self.writes_skipped = 0
        self._thread.start()
        self._opened.wait(_OPEN_SECONDS)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the values that are there; stops looking at the first trouble."""
        found: dict[bytes, bytes] = {}
        if self._cache is None:
            return found
        wanted = list(keys)
        try:
            for begin in range(0, len(wanted), _KEYS_AT_ONCE):
                for key, stored in self._find(wanted[begin : begin + _KEYS_AT_ONCE]):
                    if (value := self._checked(key, stored)) is not None:
                        found[key] = value
        except Exception as error:  # noqa: BLE001 - whatever ails a cache, labels go on
            self._warn_once("read", error)
        return found

    def put_many(self, values: Mapping[bytes, bytes]) -> None:
        """Hand values to the writing thread, or skip them where it lags behind."""
        items = [(key, value + self._check(key, value)) for key, value in values.items()]
        try:
            self._writes.put_nowait(items)
        except queue.Full:
            self.writes_skipped += len(items)

    def close(self) -> None:
        """Finish the writes that wait, within seconds; the rest is skipped."""
        try:
            self._writes.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)
        if self._cache is not None:
            # Each thread has a connection of its own.
            self._cache.close()

    def _open_and_write(self) -> None:
        try:
            self._cache = _open(self._folder, self._max_bytes)
        except Exception as error:  # noqa: BLE001 - whatever ails a cache, labels go on
            self._warn_once("open", error)
        self._opened.set()
        while (items := self._writes.get()) is not None:
            self._write(items)
        if self._cache is not None:
            self._cache.close()

    def _write(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        if self._cache is None:
            self.writes_skipped += len(items)
            return
        try:
            for _ in range(_WRITE_TRIES):
                with suppress(diskcache.Timeout), self._cache.transact():
                    self._insert(items)
                    return
            # Other processes wrote all that time: no trouble, only a write less.
            self.writes_skipped += len(items)
        except Exception as error:  # noqa: BLE001 - whatever ails a cache, labels go on
            self.writes_skipped += len(items)
            self._warn_once("write", error)

    def _find(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Yield what `get` would give for each key, in a third of its time."""
        query = _FIND.format(",".join("?" * len(keys)))
        disk = self._cache.disk
        for key, mode, filename, stored in self._cache._sql(query, keys):  # noqa: SLF001 - no public call asks for many
            yield key, disk.fetch(mode, filename, stored, read=False)

    def _insert(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Insert what `set` would, in a fifth of its time, and forget the oldest at the bound."""
        now, mode = time.time(), diskcache.core.MODE_RAW
        rows = ((key, now, now, mode, value) for key, value in items)
        self._cache._con.executemany(_INSERT, rows)  # noqa: SLF001 - as above
        if self._cache.volume() >= self._cache.size_limit:
            # The volume shrinks only with the commit, so what to forget is a number.
            self._cache._sql(_FORGET, (2 * len(items),))  # noqa: SLF001 - as above

    def _check(self, key: bytes, value: bytes) -> bytes:
        return blake2b(value, digest_size=_CHECK_BYTES, key=key).digest()

    def _checked(self, key: bytes, stored: bytes) -> bytes | None:
        value, check = stored[:-_CHECK_BYTES], stored[-_CHECK_BYTES:]
        if check == self._check(key, value):
            return value
        self._warn_once("read", ValueError())
        return None

    def _warn_once(self, step: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "disk cache in trouble: labels stay right, but are computed again",
                folder=str(self._folder),
                step=step,
                error=type(error).__name__,
                advice="check the folder's owner, rights, space, or remove it",
            )


def _open(folder: Path, max_bytes: int) -> Any:  # noqa: ANN401 - diskcache has no types
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError
    if status.st_mode & _OTHERS:
        # One that others write to, or that holds something else, was not meant for us alone.
        ours = (folder / diskcache.core.DBNAME).exists() or not any(folder.iterdir())
        if status.st_mode & _OTHERS_WRITE or not ours:
            raise PermissionError
        folder.chmod(0o700)
    # Named although they are the defaults: settings come back from the file otherwise.
    return diskcache.Cache(
        str(folder),
        timeout=_BUSY_SECONDS,
        disk=RawDisk,
        # The bound of the database; its write-ahead log comes on top of it.
        size_limit=max_bytes - max_bytes // 8,
        eviction_policy="least-recently-stored",
        statistics=0,
        tag_index=0,
    )


def _only_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("the cache holds bytes only")
    return value
