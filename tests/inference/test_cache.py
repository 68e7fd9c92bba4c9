"""The caches: bounded, exact, private, and never in the way."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import sign
from worker.inference.cache import DiskCache, MemoryCache, text_key, tokens_key
from worker.inference.classifier import Classifier
from worker.inference.database import identity_of, move_aside
from worker.inference.engine import load_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEGABYTE = 2**20
BYTES = st.binary(min_size=1, max_size=40)


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Let nothing be skipped because this machine has other work; one test looks at that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.inference.cache._OPEN_SECONDS", 60.0)
        patch.setattr("worker.inference.cache._CLOSE_SECONDS", 60.0)
        yield


@given(
    entries=st.integers(0, 20),
    puts=st.lists(st.tuples(st.binary(min_size=1, max_size=1), BYTES), max_size=100),
)
def test_the_table_is_bounded_and_never_gives_a_wrong_value(
    entries: int, puts: list[tuple[bytes, bytes]]
) -> None:
    cache = MemoryCache(entries)
    last: dict[bytes, bytes] = {}
    for key, value in puts:
        cache.put(key, value)
        last[key] = value
        assert len(cache) <= entries
        assert cache.get(key) in ({value, None} if entries == 0 else {value})
    assert all(cache.get(key) in {None, value} for key, value in last.items())


def test_the_table_keeps_what_is_used() -> None:
    cache = MemoryCache(100)
    cache.put(b"popular", b"1")
    for number in range(1000):
        cache.put(str(number).encode(), b"2")
        assert cache.get(b"popular") == b"1"


def test_what_was_used_outlives_a_flood_of_what_is_seen_once() -> None:
    cache = MemoryCache(100)
    popular = [b"a", b"b", b"c"]
    for key in popular:
        cache.put(key, key)
        assert cache.get(key) == key
    for number in range(1000):
        cache.put(str(number).encode(), b"2")
    assert [cache.get(key) for key in popular] == popular


def test_what_was_used_is_forgotten_once_enough_others_are_used() -> None:
    cache = MemoryCache(100)
    for number in range(200):
        key = str(number).encode()
        cache.put(key, key)
        cache.get(key)
    assert cache.get(b"0") is None
    assert cache.get(b"199") == b"199"


@pytest.mark.parametrize("entries", [50_000, 100_000, 175_000])
@pytest.mark.parametrize("used", [False, True])
def test_the_table_costs_at_most_200_bytes_an_entry(entries: int, *, used: bool) -> None:
    cache = MemoryCache(entries)
    for number in range(2 * entries):
        cache.put(text_key(str(number)), bytes(1 + 4 * 7))
        if used and number % 2:
            cache.get(text_key(str(number)))
    tables = [cache._young, cache._old, cache._used, cache._used_old]
    objects = [item for table in tables for pair in table.items() for item in pair]
    size = sum(map(sys.getsizeof, [*objects, *tables]))
    assert 0.8 * entries <= len(cache) <= entries
    assert size / len(cache) <= 200


@given(first=st.text(st.characters()), second=st.text(st.characters()))
def test_keys_of_texts_differ_as_texts_do(first: str, second: str) -> None:
    assert (text_key(first) == text_key(second)) == (first == second)


def test_keys_of_tokens_differ_by_model() -> None:
    assert tokens_key(b"one", [1, 2]) != tokens_key(b"two", [1, 2])
    assert tokens_key(b"one", [1, 2]) != tokens_key(b"one", [1, 2, 3])


@given(values=st.dictionaries(BYTES, st.binary(max_size=60), max_size=10))
def test_what_was_put_on_disk_comes_back(
    tmp_path_factory: pytest.TempPathFactory, values: dict[bytes, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("disk")
    first = DiskCache(folder, MEGABYTE)
    first.put_many(values)
    first.close()
    second = DiskCache(folder, MEGABYTE)
    assert second.get_many(values) == values
    assert second.get_many([b"never put there"]) == {}
    second.close()


def test_the_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    DiskCache(tmp_path / "new", MEGABYTE).close()
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    DiskCache(open_folder, MEGABYTE).close()
    for folder in (tmp_path / "new", open_folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(("mode", "content"), [(0o777, None), (0o1777, None), (0o755, "diary.txt")])
def test_a_folder_that_is_not_only_ours_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, content: str | None
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    if content:
        (folder / content).touch()
    DiskCache(folder, MEGABYTE).close()
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert "disk cache in trouble" in caplog.text


def test_neither_texts_nor_tokens_are_on_disk(tmp_path: Path) -> None:
    classifier = Classifier.load(cache_directory=tmp_path)
    classifier.classify(["my secret is strawberry"])
    classifier.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    (tokens,) = classifier._tokenizer.encode(["my secret is strawberry"])
    assert b"strawberry" not in content
    assert b"".join(number.to_bytes(4, "little") for number in tokens.ids) not in content


def test_another_model_never_reads_it(tmp_path: Path, model_copy: Path) -> None:
    classifier = Classifier.load(cache_directory=tmp_path / "cache")
    classifier.classify(["gg"])
    classifier.close()
    with (model_copy / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    sign(model_copy, "tokenizer.json")
    second = Classifier(load_model(model_copy), DiskCache(tmp_path / "cache", MEGABYTE))
    second.classify(["gg"])
    assert second.counts.computed == 1
    second.close()


def test_many_keys_are_found_in_one_call(tmp_path: Path) -> None:
    values = {str(number).encode(): b"value" for number in range(1200)}
    first = DiskCache(tmp_path, MEGABYTE)
    first.put_many(values)
    first.close()
    second = DiskCache(tmp_path, MEGABYTE)
    assert second.get_many([*values, b"other"]) == values
    assert second.get_many([]) == {}
    second.close()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("column", ["value", "file", "outside file"])
def test_a_pickle_in_the_database_is_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    cache = DiskCache(folder, MEGABYTE)
    cache.put_many({b"key": b"value"})
    cache.close()
    bomb = pickle.dumps(Bomb())
    (folder / "bomb.val").write_bytes(bomb)
    (tmp_path / "outside.val").write_bytes(bomb)
    change = {
        "value": ("UPDATE Cache SET mode = 4, value = ?", bomb),
        "file": ("UPDATE Cache SET mode = 4, value = NULL, filename = ?", "bomb.val"),
        "outside file": ("UPDATE Cache SET mode = 2, filename = ?", "../outside.val"),
    }[column]
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute(change[0], (change[1],))
    database.close()
    again = DiskCache(folder, MEGABYTE)
    assert again.get_many([b"key"]) == {}
    again.put_many({b"key": b"new"})
    again.close()
    assert not (tmp_path / "exploded").exists()
    assert (tmp_path / "outside.val").exists()


def test_a_value_changed_on_disk_is_a_miss_and_never_a_wrong_label(
    tmp_path: Path, classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    first = Classifier.load(cache_directory=tmp_path)
    expected = classifier.classify(["gg wp"])
    first.classify(["gg wp"])
    first.close()
    with sqlite3.connect(tmp_path / "cache.db") as database:
        (value,) = database.execute("SELECT value FROM Cache").fetchone()
        database.execute("UPDATE Cache SET value = ?", (bytes([value[0] ^ 1]) + value[1:],))
    database.close()
    second = Classifier.load(cache_directory=tmp_path)
    assert second.classify(["gg wp"]) == expected
    assert second.counts.computed == 1
    second.close()
    assert "disk cache in trouble" in caplog.text


def damage_garbage(folder: Path) -> None:
    (folder / "cache.db").write_bytes(os.urandom(20_000))


def damage_cut(folder: Path) -> None:
    with (folder / "cache.db").open("r+b") as file:
        file.truncate(5000)


def damage_other_tables(folder: Path) -> None:
    (folder / "cache.db").unlink()
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("CREATE TABLE Cache (something TEXT)")
    database.close()


def damage_pages(folder: Path) -> None:
    """Leave the first page, so that the database opens."""
    with (folder / "cache.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize("damage", [damage_garbage, damage_cut, damage_other_tables, damage_pages])
def test_a_damaged_cache_is_moved_aside_once_and_a_fresh_one_begins(
    tmp_path: Path, classifier: Classifier, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    texts = [f"message {number}" for number in range(300)]
    expected = classifier.classify(texts)
    folder = tmp_path / "cache"
    first = Classifier.load(cache_directory=folder)
    first.classify(texts)
    first.close()
    damage(folder)
    for round_ in range(3):
        again = Classifier.load(cache_directory=folder, memory_entries=0)
        for start in range(0, 300, 100):
            assert again.classify(texts[start : start + 100]) == expected[start : start + 100]
        again.close()
        if round_ == 2:
            assert again.counts.disk_hits == 300
    assert (folder / "cache.db.damaged").exists()
    assert caplog.text.count("disk cache is damaged") == 1
    assert "in trouble" not in caplog.text


def test_of_several_processes_that_find_it_damaged_one_replaces_it(tmp_path: Path) -> None:
    DiskCache(tmp_path, MEGABYTE).close()
    damage_garbage(tmp_path)
    damaged = identity_of(tmp_path)
    for _ in range(2):
        move_aside(tmp_path, damaged)
        cache = DiskCache(tmp_path, MEGABYTE)
        cache.put_many({b"key": b"value"})
        cache.close()
    third = DiskCache(tmp_path, MEGABYTE)
    assert third.get_many([b"key"]) == {b"key": b"value"}
    third.close()
    assert identity_of(tmp_path) != damaged


def test_what_is_damaged_again_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DiskCache(tmp_path, MEGABYTE).close()
    damage_garbage(tmp_path)
    cache = DiskCache(tmp_path, MEGABYTE)
    cache.put_many({b"key": b"value"})
    while not cache.get_many([b"key"]):
        time.sleep(0.01)
    with sqlite3.connect(tmp_path / "cache.db") as database:
        database.execute("DROP TABLE Cache")
    database.close()
    for _ in range(3):
        cache.get_many([b"key"])
        cache.put_many({b"key": b"value"})
    cache.close()
    assert caplog.text.count("disk cache is damaged") == 1
    assert caplog.text.count("disk cache in trouble") == 1


def test_a_cache_that_cannot_be_used_is_logged_once_and_changes_no_label(
    tmp_path: Path, classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"message {number}" for number in range(300)]
    expected = classifier.classify(texts)
    folder = tmp_path / "cache"
    folder.write_bytes(b"")
    second = Classifier.load(cache_directory=folder, memory_entries=0)
    for start in range(0, 300, 100):
        assert second.classify(texts[start : start + 100]) == expected[start : start + 100]
    second.close()
    assert caplog.text.count("disk cache in trouble") == 1


def test_a_read_only_cache_is_logged_once_and_still_read(
    tmp_path: Path, classifier: Classifier
) -> None:
    expected = classifier.classify(["gg", "wp"])
    first = Classifier.load(cache_directory=tmp_path / "cache")
    first.classify(["gg"])
    first.close()
    with sqlite3.connect(tmp_path / "cache" / "cache.db") as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON Cache BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    database.close()
    second = Classifier.load(cache_directory=tmp_path / "cache")
    assert second.classify(["gg", "wp"]) == expected
    second.close()
    assert second.counts.disk_hits == 1
    assert second.disk
    assert second.disk.writes_skipped == 1


def test_a_cache_locked_by_another_process_skips_writes_and_goes_on(
    tmp_path: Path, classifier: Classifier
) -> None:
    expected = classifier.classify(["gg", "wp"])
    second = Classifier.load(cache_directory=tmp_path)
    lock = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    assert second.classify(["gg", "wp"]) == expected
    second.close()
    lock.execute("ROLLBACK")
    lock.close()
    assert second.disk
    assert second.disk.writes_skipped == 2


def test_a_cache_locked_at_start_delays_by_a_second_at_most_and_goes_on(
    tmp_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.inference.cache._OPEN_SECONDS", 1.0)
    DiskCache(tmp_path, MEGABYTE).close()
    lock = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    lock.execute("PRAGMA locking_mode = EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    second = Classifier.load(cache_directory=tmp_path)
    assert second.classify(["gg"]) == classifier.classify(["gg"])
    lock.execute("ROLLBACK")
    lock.close()
    second.close()


def test_writes_that_the_disk_cannot_keep_up_with_are_skipped(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, MEGABYTE)
    lock = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for number in range(100):
        cache.put_many({str(number).encode(): b"value"})
    assert cache.writes_skipped > 0
    lock.execute("ROLLBACK")
    lock.close()
    cache.close()


def test_a_foreign_folder_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    cache = DiskCache(tmp_path, MEGABYTE)
    cache.put_many({b"key": b"value"})
    assert cache.get_many([b"key"]) == {}
    cache.close()
    assert "disk cache in trouble" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_cache_follows_the_model_not_the_thresholds(tmp_path: Path) -> None:
    first = Classifier.load(cache_directory=tmp_path)
    first.classify(["gg"])
    first.close()
    second = Classifier.load(cache_directory=tmp_path, thresholds={"joy": 0.9})
    second.classify(["gg"])
    assert second.counts.disk_hits == 1
    second.close()
