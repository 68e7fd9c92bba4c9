"""How many processes a rate needs for a latency, by a formula that a simulation checks.

A process takes all that waits for it, labels that as a chunk, and comes back for more. With
messages that arrive at a rate r, a chunk of n messages that costs S(n), and a round trip to the
brokers R for each, chunks settle at the time T = R + S(r T). A message waits for the chunk under
way, then for its own: two times T at most, if all chunks were equal. They are not: arrivals are
independent of each other (a Poisson process), some messages are long, and some known. Where that
makes a chunk longer by x, the next finds r x more messages, and is longer by q x (q is r times what
one more message costs): an autoregression of the first order. With a deviation d of a chunk by itself,
two in a row deviate by d sqrt(2 / (1 - q)), of which the formula adds three. The simulation draws
arrivals, and costs from those that were measured.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from worker.defaults import CHUNK_RECORDS
from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_SIMULATED_MESSAGES: Final = 200_000
_DEVIATIONS: Final = 3
_PER_CENT: Final = 99
_STEPS: Final = 1000
_SETTLED: Final = 1e-6
# Where it all but does not settle.
_LEAST: Final = 0.01


@dataclass(frozen=True)
class Costs:
    """Seconds of chunks by their size, as measured, and of a round trip to the brokers."""

    by_size: Mapping[int, Sequence[float]]
    round_trip: float

    @cached_property
    def means(self) -> tuple[list[int], list[float]]:
        """Return the sizes that were measured, and the average seconds of each."""
        sizes = sorted(self.by_size)
        return sizes, [statistics.mean(self.by_size[size]) for size in sizes]

    def seconds(self, records: float) -> float:
        """Return what a chunk takes on average, with its round trip."""
        sizes, means = self.means
        if records <= sizes[-1]:
            return self.round_trip + float(np.interp(records, sizes, means))
        return self.round_trip + means[-1] * records / sizes[-1]

    def deviation(self, records: float) -> float:
        """Return the standard deviation of a chunk of so many messages that came by chance."""
        sizes, means = self.means
        one = statistics.pvariance(self.by_size[sizes[0]])
        more = (means[1] - means[0]) / (sizes[1] - sizes[0])
        return math.sqrt(records * (one + more**2))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate needs; times are seconds, `busy` is the share of time that a process computes."""

    processes: int
    records: float
    cycle: float
    p99_by_formula: float
    p99_simulated: float
    busy: float


def plan(costs: Costs, rate: float, p99: float) -> Plan:
    """Return the fewest processes that keep 99% of messages within `p99` seconds, by both ways.

    `rate` is in messages a second, of all processes together.

    Raises:
        ConfigurationError: no number of processes does.

    """
    least = 2 * costs.seconds(1)
    if least > p99:
        raise ConfigurationError(
            f"99% within {1000 * p99:g} ms cannot be had: a chunk takes {500 * least:.1f} ms even "
            "if it is one message, and who comes while it is under way waits for it",
            "allow more time, or bring the brokers nearer (--round-trip)",
        )
    processes = 1
    while by_formula(costs, rate / processes) > p99:
        processes += max(1, processes // 50)
    while True:
        seconds, busy = simulated(costs, rate / processes)
        if (p99_simulated := float(np.percentile(seconds, _PER_CENT))) <= p99:
            break
        processes += max(1, processes // 50)
    share = rate / processes
    cycle = settled(costs, share)
    records = max(1.0, share * cycle)
    return Plan(processes, records, cycle, by_formula(costs, share), p99_simulated, busy)


def settled(costs: Costs, rate: float) -> float:
    """Return the seconds at which chunks of a process settle; infinite where it cannot keep up."""
    cycle = costs.seconds(1)
    for _ in range(_STEPS):
        if rate * cycle > CHUNK_RECORDS:
            return math.inf
        following = costs.seconds(max(1.0, rate * cycle))
        if following - cycle < _SETTLED:
            break
        cycle = following
    return cycle


def by_formula(costs: Costs, rate: float) -> float:
    """Return the formula's time for the slowest message of a hundred."""
    cycle = settled(costs, rate)
    if math.isinf(cycle):
        return cycle
    records = max(1.0, rate * cycle)
    echo = rate * (costs.seconds(records + 1) - costs.seconds(records))
    return 2 * cycle + _DEVIATIONS * costs.deviation(records) * math.sqrt(2 / max(_LEAST, 1 - echo))


def simulated(costs: Costs, rate: float, seed: int = 1) -> tuple[NDArray[np.float64], float]:
    """Return the seconds of messages in a simulation of one process, and how busy that was."""
    rng = np.random.default_rng(seed)
    arrivals = rng.exponential(1 / rate, _SIMULATED_MESSAGES).cumsum()
    sizes, means = costs.means
    # Of each size, how measured chunks were to their average.
    spread = {
        size: [seconds / mean for seconds in costs.by_size[size]]
        for size, mean in zip(sizes, means, strict=True)
    }
    seconds = np.empty(_SIMULATED_MESSAGES)
    now = computed = 0.0
    begin = 0
    while begin < _SIMULATED_MESSAGES:
        now = max(now, arrivals[begin])
        end = min(int(arrivals.searchsorted(now, "right")), begin + CHUNK_RECORDS)
        near = spread[_nearest(sizes, end - begin)]
        work = costs.seconds(end - begin) - costs.round_trip
        work *= near[int(rng.random() * len(near))]
        computed += work
        now += costs.round_trip + work
        seconds[begin:end] = now - arrivals[begin:end]
        begin = end
    return seconds, computed / now


def _nearest(sizes: Sequence[int], records: int) -> int:
    return min(sizes, key=lambda size: abs(math.log(size / records)))
