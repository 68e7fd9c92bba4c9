"""The database writes what diskcache would, only faster; and what it uses of diskcache is there."""

from __future__ import annotations

import ast
import operator
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
import pytest

import worker
from worker.inference.database import DamagedError, Database, RawDisk

MEGABYTE = 2**20
DATABASE = Path(worker.__file__).parent / "inference" / "database.py"


@pytest.mark.parametrize(
    "part",
    [
        "Cache._con",
        "Cache._sql",
        "Cache.close",
        "Cache.disk",
        "Cache.transact",
        "Cache.volume",
        "Disk.fetch",
        "Disk.get",
        "Disk.put",
        "Disk.remove",
        "Disk.store",
        "Timeout",
        "core.DBNAME",
        "core.MODE_RAW",
    ],
)
def test_diskcache_has_what_the_database_uses(part: str) -> None:
    assert operator.attrgetter(part)(diskcache) is not None


@pytest.mark.parametrize(
    "column", ["key", "raw", "store_time", "access_time", "mode", "filename", "value"]
)
def test_diskcache_has_the_column(tmp_path: Path, column: str) -> None:
    diskcache.Cache(str(tmp_path)).close()
    with sqlite3.connect(tmp_path / diskcache.core.DBNAME) as database:
        columns = {name for _, name, *_ in database.execute("PRAGMA table_info(Cache)")}
    database.close()
    assert column in columns


def private_parts(path: Path) -> set[str]:
    """Return the private attributes that a module asks of what is not itself."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }


def test_the_tests_above_name_every_private_part() -> None:
    assert private_parts(DATABASE) == {"_sql", "_con"}


def test_no_other_module_knows_diskcache() -> None:
    package = Path(worker.__file__).parent
    users = {path for path in package.rglob("*.py") if b"import diskcache" in path.read_bytes()}
    assert users == {DATABASE}


def test_a_row_is_what_diskcache_itself_would_write_and_it_reads_ours(tmp_path: Path) -> None:
    ours, theirs = (Database(tmp_path / name, MEGABYTE) for name in ("ours", "theirs"))
    assert ours.insert([(b"key", b"value")])
    theirs._cache.set(b"key", b"value")
    assert ours._cache.get(b"key") == b"value"
    assert dict(theirs.find([b"key", b"other"])) == {b"key": b"value"}
    ours.close()
    theirs.close()
    assert row(tmp_path / "ours") == row(tmp_path / "theirs")


def row(folder: Path) -> dict[str, Any]:
    """Return the only row of a cache, without what depends on the time."""
    with sqlite3.connect(folder / "cache.db") as database:
        database.row_factory = sqlite3.Row
        (found,) = database.execute("SELECT * FROM Cache")
    database.close()
    times = {"store_time", "access_time"}
    return {name: value for name, value in dict(found).items() if name not in times}


def test_the_oldest_entries_go_where_the_bound_is_reached(tmp_path: Path) -> None:
    database = Database(tmp_path, MEGABYTE)
    for start in range(0, 40_000, 1000):
        numbers = range(start, start + 1000)
        assert database.insert([(number.to_bytes(16, "big"), bytes(36)) for number in numbers])
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    latest = [number.to_bytes(16, "big") for number in range(39_000, 39_500)]
    assert len(dict(database.find(latest))) == 500
    assert not dict(database.find([(0).to_bytes(16, "big")]))
    database.close()
    assert size < 8 * MEGABYTE


def test_a_key_that_is_not_raw_is_refused(tmp_path: Path) -> None:
    disk = RawDisk(str(tmp_path))
    assert disk.get(b"key", raw=True) == b"key"
    with pytest.raises(ValueError, match="not raw"):
        disk.get(pickle.dumps("key"), raw=False)
    with pytest.raises(TypeError, match="bytes only"):
        disk.put("key")  # type: ignore[arg-type]


def test_a_database_that_cannot_be_opened_is_not_held_open(tmp_path: Path) -> None:
    """Python 3.13 warns of each connection that is left to the garbage collector."""
    path = tmp_path / diskcache.core.DBNAME
    path.write_bytes(b"no database" * 1000)
    tmp_path.chmod(0o700)
    # The error keeps alive what was at hand where it was raised.
    with pytest.raises(DamagedError) as error:
        Database(tmp_path, MEGABYTE)
    opened = {link.resolve() for link in Path("/proc/self/fd").iterdir()}
    assert path.resolve() not in opened
    assert error.tb is not None
