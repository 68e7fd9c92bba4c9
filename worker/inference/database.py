"""The disk cache's database: the only module that knows diskcache, private parts included.

diskcache reads and writes one entry a call. Many entries in one SQL statement take a third of the
time to read and a fifth of the time to write, but no public call does that. So this module uses
`Cache._sql`, `Cache._con` and the columns of the table; a test names each part that it relies on,
so that an upgrade of diskcache which removes one fails with its name.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import diskcache

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

_LOCK_WAIT_SECONDS: Final = 0.1
_WRITE_TRIES: Final = 10
_INSERT: Final = """
    INSERT OR REPLACE INTO Cache (key, raw, store_time, access_time, mode, value)
    VALUES (?, 1, ?, ?, ?, ?)"""
_FORGET: Final = """
    DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache ORDER BY store_time LIMIT ?)"""
_FIND: Final = "SELECT key, mode, filename, value FROM Cache WHERE raw = 1 AND key IN ({})"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
# The last is that of a statement that fits no such table.
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_PRIMARY_CODE: Final = 0xFF


class DamagedError(Exception):
    """The file is not a database, or not one of ours; it does no more good."""


class RawDisk(diskcache.Disk):  # type: ignore[misc] # diskcache ships no types
    """Stores bytes in the database, and nothing else anywhere else.

    diskcache's own class unpickles what it reads and opens files that rows name (CVE-2025-69872),
    so that whoever can write to the database could run code in this process.
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
        read: object,  # noqa: ARG002 - diskcache passes it
        key: object = None,  # noqa: ARG002 - diskcache passes it by name
    ) -> tuple[int, int, None, memoryview]:
        """Turn a value into a row: size outside the database, mode, file name, value."""
        return 0, diskcache.core.MODE_RAW, None, memoryview(_only_bytes(value))

    def fetch(
        self,
        mode: int,
        filename: str | None,
        value: object,
        read: object,  # noqa: ARG002 - diskcache passes it
    ) -> bytes:
        """Turn a row into a value."""
        if mode != diskcache.core.MODE_RAW or filename is not None:
            raise ValueError("a cache value that is not raw")
        return _only_bytes(value)

    def remove(self, file_path: str) -> None:
        """Do nothing: this worker writes no rows that name files, so such a row was forged."""


class _Cache(diskcache.Cache):  # type: ignore[misc] # diskcache ships no types
    """Closes its connection where it cannot be opened; diskcache leaves that to the collector."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        try:
            super().__init__(*arguments, **settings)
        except BaseException:
            self.close()
            raise


class Database:
    """A folder with diskcache's database; each thread that uses it has a connection of its own.

    Every call may raise `DamagedError`, and whatever sqlite3, diskcache or the file system raise.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open the database, and create it where there is none.

        Raises:
            PermissionError: the folder belongs to someone else, or is not meant for us alone.

        """
        _make_private(folder)
        # Settings that are not given here would be taken from the database. So all that matter
        # are given, although they are the defaults.
        with _damage_told():
            self._cache = _Cache(
                str(folder),
                timeout=_LOCK_WAIT_SECONDS,
                disk=RawDisk,
                # This bounds the database; the rest is for its write-ahead log, which comes on top.
                size_limit=max_bytes - max_bytes // 8,
                eviction_policy="least-recently-stored",
                statistics=0,
                tag_index=0,
                # Mapped pages that someone cuts off would end the process by SIGBUS, and they save
                # next to nothing beside the time that a text takes.
                sqlite_mmap_size=0,
            )
        self.identity = identity_of(folder)

    def find(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of each key that is there, as diskcache's `get` would return them.

        There may be as many keys as SQLite takes parameters in a statement, 999 at least.
        """
        query = _FIND.format(",".join("?" * len(keys)))
        with _damage_told():
            rows = self._cache._sql(query, keys)  # noqa: SLF001 - diskcache's `get` takes one key
            for key, mode, filename, stored in rows:
                yield key, self._cache.disk.fetch(mode, filename, stored, read=False)

    def insert(self, items: Sequence[tuple[bytes, bytes]]) -> bool:
        """Insert keys with their values, all or none, as diskcache's `set` would.

        Returns False, and inserts none, where other processes keep the database locked for about
        a second.
        """
        for _ in range(_WRITE_TRIES):
            with _damage_told(), suppress(diskcache.Timeout), self._cache.transact():
                self._insert(items)
                return True
        return False

    def close(self) -> None:
        """Close the connection of the calling thread; the next call opens another."""
        self._cache.close()

    def _insert(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        now, mode = time.time(), diskcache.core.MODE_RAW
        rows = ((key, now, now, mode, value) for key, value in items)
        self._cache._con.executemany(_INSERT, rows)  # noqa: SLF001 - `set` takes one key
        if self._cache.volume() >= self._cache.size_limit:
            # The volume shrinks only with the commit, so no loop can watch it (`cull` does). Twice
            # as many entries are deleted as came, the oldest ones.
            self._cache._sql(_FORGET, (2 * len(items),))  # noqa: SLF001 - `cull` would delete all


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Return what tells the database in a folder from a later one; None where there is none."""
    try:
        status = (folder / diskcache.core.DBNAME).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def move_aside(folder: Path, damaged: tuple[int, int] | None) -> None:
    """Rename a damaged database to `cache.db.damaged`, in place of an earlier one of this name.

    Nothing is done where another process did it meanwhile, and the folder has another database.

    Raises:
        OSError: the folder cannot be written.

    """
    path = folder / diskcache.core.DBNAME
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if damaged is not None and identity_of(folder) == damaged:
            # First, or they might be those of a fresh database that another process has begun.
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            path.replace(path.with_name(f"{path.name}.damaged"))
    finally:
        os.close(descriptor)


@contextmanager
def _damage_told() -> Generator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE in _DAMAGE:
            raise DamagedError from None
        raise


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError
    if status.st_mode & _OTHERS:
        # A folder that others write to, or that holds something else, is not ours to close.
        ours = (folder / diskcache.core.DBNAME).exists() or not any(folder.iterdir())
        if status.st_mode & _OTHERS_WRITE or not ours:
            raise PermissionError
        folder.chmod(0o700)


def _only_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("the cache holds bytes only")
    return value
