"""Ways to choose what a bounded table keeps, each exact and small, and how often each has an answer.

`benchmarks.caches` prints the comparison. All are used as `worker.inference.cache.MemoryCache` is: `get`, and
`put` for what `get` did not have.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Protocol

from worker.inference.cache import MemoryCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# As an answer for seven labels.
_ANSWER: Final = bytes(29)


class Table(Protocol):
    """What is compared."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes) -> None: ...


class Fifo:
    """Forgets what came first."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        if len(self._values) >= self._entries:
            self._values.popitem(last=False)
        self._values[key] = value


class Lru(Fifo):
    """Forgets what was used the longest time ago."""

    def get(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value


class Clock(Fifo):
    """Forgets what came first, but what was used since goes to the end once more."""

    def __init__(self, entries: int) -> None:
        super().__init__(entries)
        self._used: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        value = self._values.get(key)
        if value is not None:
            self._used.add(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if len(self._values) >= self._entries:
            while (first := next(iter(self._values))) in self._used:
                self._used.discard(first)
                self._values.move_to_end(first)
            del self._values[first]
        self._values[key] = value


class Sieve:
    """A hand goes from old to new, forgives what was used, in its place, and forgets the first other.

    What the hand has passed stands in one queue, what is before it in another.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._before: OrderedDict[bytes, bytes] = OrderedDict()
        self._passed: OrderedDict[bytes, bytes] = OrderedDict()
        self._used: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        value = self._before.get(key) or self._passed.get(key)
        if value is not None:
            self._used.add(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if len(self._before) + len(self._passed) >= self._entries:
            self._forget_one()
        self._before[key] = value

    def _forget_one(self) -> None:
        while True:
            if not self._before:
                self._before, self._passed = self._passed, self._before
            key, value = self._before.popitem(last=False)
            if key not in self._used:
                return
            self._used.discard(key)
            self._passed[key] = value


class S3Fifo:
    """A queue for what is new, of a tenth, one for what was used there, and one of forgotten keys."""

    MOST_USES = 3

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._most_new = max(1, entries // 10)
        self._most_main = entries - self._most_new
        self._new: OrderedDict[bytes, bytes] = OrderedDict()
        self._main: OrderedDict[bytes, bytes] = OrderedDict()
        self._forgotten: OrderedDict[bytes, None] = OrderedDict()
        self._uses: dict[bytes, int] = {}

    def get(self, key: bytes) -> bytes | None:
        value = self._new.get(key) or self._main.get(key)
        if value is not None:
            self._uses[key] = min(self.MOST_USES, self._uses[key] + 1)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        while len(self._new) + len(self._main) >= self._entries:
            if len(self._new) >= self._most_new:
                self._shorten_new()
            else:
                self._shorten_main()
        known = key in self._forgotten
        if known:
            del self._forgotten[key]
        (self._main if known else self._new)[key] = value
        self._uses[key] = 0

    def _shorten_new(self) -> None:
        key, value = self._new.popitem(last=False)
        if self._uses[key] > 1:
            self._main[key] = value
            return
        del self._uses[key]
        self._forgotten[key] = None
        if len(self._forgotten) > self._most_main:
            self._forgotten.popitem(last=False)

    def _shorten_main(self) -> None:
        key, value = self._main.popitem(last=False)
        if self._uses[key]:
            self._uses[key] -= 1
            self._main[key] = value
        else:
            del self._uses[key]


class SegmentedLru:
    """An LRU for what was seen once, another, of at most four fifths, for what was used again."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._most_kept = entries * 4 // 5
        self._once: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()

    @property
    def victim(self) -> bytes | None:
        """Return the key that the next `put` forgets, if any."""
        if len(self._once) + len(self._kept) < self._entries:
            return None
        return next(iter(self._once or self._kept))

    def get(self, key: bytes) -> bytes | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
            return value
        value = self._once.pop(key, None)
        if value is not None:
            self._kept[key] = value
            if len(self._kept) > self._most_kept:
                back, its_value = self._kept.popitem(last=False)
                self._once[back] = its_value
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if self.victim is not None:
            (self._once or self._kept).popitem(last=False)
        self._once[key] = value


class TinyLfu:
    """A segmented LRU that admits what was asked for more often than what it would forget for it.

    A hundredth is a window for what is new. Requests are counted exactly, and all counts halved
    after ten requests an entry.
    """

    def __init__(self, entries: int) -> None:
        self._most_new = max(1, entries // 100)
        self._new = OrderedDict[bytes, bytes]()
        self._main = SegmentedLru(entries - self._most_new)
        self._requests: defaultdict[bytes, int] = defaultdict(int)
        self._halve_after = 10 * entries
        self._since = 0

    def get(self, key: bytes) -> bytes | None:
        self._requests[key] += 1
        self._since += 1
        if self._since == self._halve_after:
            halves = {each: number // 2 for each, number in self._requests.items() if number > 1}
            self._requests, self._since = defaultdict(int, halves), 0
        value = self._new.get(key)
        if value is None:
            return self._main.get(key)
        self._new.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        self._new[key] = value
        if len(self._new) <= self._most_new:
            return
        first, its_value = self._new.popitem(last=False)
        victim = self._main.victim
        if victim is None or self._requests[first] > self._requests[victim]:
            self._main.put(first, its_value)


class TwoGenerations:
    """One generation for what is new or used, and one for what was so before; plain dicts."""

    def __init__(self, entries: int) -> None:
        self._half = -(-entries // 2)
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        value = self._young.get(key)
        if value is None and (value := self._old.get(key)) is not None:
            self.put(key, value)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = value


def best_hits(keys: Sequence[bytes], entries: int) -> int:
    """Return how many hits there are for one who knows the future: no policy has more (Belady)."""
    following: dict[bytes, int] = {}
    next_uses: list[int | None] = []
    for place in range(len(keys) - 1, -1, -1):
        next_uses.append(following.get(keys[place]))
        following[keys[place]] = place
    kept: dict[bytes, int] = {}
    latest: list[tuple[int, bytes]] = []
    hits = 0
    for key in keys:
        hits += kept.pop(key, None) is not None
        next_use = next_uses.pop()
        if next_use is None:
            continue
        kept[key] = next_use
        heappush(latest, (-next_use, key))
        while len(kept) > entries:
            use, last = heappop(latest)
            if kept.get(last) == -use:
                del kept[last]
    return hits


TABLES: Final[dict[str, Callable[[int], Table]]] = {
    "MemoryCache": MemoryCache,
    "two generations": TwoGenerations,
    "FIFO": Fifo,
    "LRU": Lru,
    "CLOCK": Clock,
    "SIEVE": Sieve,
    "segmented LRU": SegmentedLru,
    "S3-FIFO": S3Fifo,
    "TinyLFU": TinyLfu,
}


def compare_policies(name: str, keys: Sequence[bytes], sizes: Sequence[int]) -> None:
    """Print the hits of each policy and size, up to the first size that holds all."""
    different = len(set(keys))
    sizes = sizes[: 1 + sum(size < different for size in sizes)]
    repeated = 1 - different / len(keys)
    print(f"\n% of hits, {name}: {len(keys):,} messages, {different:,} different, ", end="")
    print(f"{repeated:.2%} repeat")
    print(f"{'entries':22}" + "".join(f"{size:11,}" for size in sizes))
    for policy, table in TABLES.items():
        rates = [hits(table(size), keys) / len(keys) for size in sizes]
        print(f"{policy:22}" + "".join(f"{100 * rate:11.2f}" for rate in rates))
    rates = [best_hits(keys, size) / len(keys) for size in sizes]
    print(f"{'no policy has more':22}" + "".join(f"{100 * rate:11.2f}" for rate in rates))


def hits(table: Table, keys: Iterable[bytes]) -> int:
    number = 0
    for key in keys:
        if table.get(key) is None:
            table.put(key, _ANSWER)
        else:
            number += 1
    return number
