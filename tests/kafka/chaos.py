"""Chaos: real workers under random faults for some time, and what the verifier says of it.

    python -m tests.kafka.chaos --guarantee exactly-once --seconds 900 --seed 7

Events come in all the time. Most faults strike one worker at an exact point, a request or its
answer, where the proxy sees it; the others strike the brokers, the network or the group at large.
All faults are dealt from a shuffled deck, again and again, so that each strikes about as often.
Then they end, what is left is labelled, the workers are asked to stop, and the topics are read.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from tests.kafka.broker import PATIENCE, Cluster, missing, wait_until
from tests.kafka.hostile import ATTACKS
from tests.kafka.proxy import HOST, Api, BlackHole, Call, Cut, Delay, Fault, Ghost, Moment, Proxy
from tests.kafka.raw import RawProducer
from tests.kafka.stage import Stage, WorkerProcess
from tests.kafka.verifier import Report, verify
from worker.inference.classifier import Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kafka.broker import Node
    from tests.kafka.proxy import Action, Armed

# Faults are no news here; and pytest would keep what it is told of, with the sockets in it.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

FOLDER = Path(__file__).parents[2] / "build" / "chaos"
WORKERS = 3
PARTITIONS = 6
CHUNK_RECORDS = 64
NAME = "chaos"
# So long a fault waits for its request before another takes its turn.
TURN_SECONDS = 8.0
# Of the events, so many are followed by hostile records.
HOSTILE_SHARE = 0.005
# At so many places faults strike at the same time.
HANDS = 2
DRAIN_SECONDS = 300.0
# Who ends by itself is started again only then.
RESTART_SECONDS = 1.0

# Short times, so that each fault has its consequences within seconds.
SETTINGS = {
    "KAFKA__SESSION_TIMEOUT_SECONDS": "3",
    "KAFKA__TRANSACTION_TIMEOUT_SECONDS": "4",
    "KAFKA__REQUEST_TIMEOUT_SECONDS": "1.5",
    "KAFKA__DEADLINE_SECONDS": "5",
    "KAFKA__MAX_POLL_INTERVAL_SECONDS": "12",
    "KAFKA__CHUNK_RECORDS": str(CHUNK_RECORDS),
    "KAFKA__UNDECODABLE": "dead-letter",
    "RUN__STUCK_SECONDS": "60",
}
# In terms of these: within a request's time or beyond it, within all of them or beyond.
SHORT, LATE, LONG = (0.2, 1.0), (2.0, 4.0), (5.0, 7.0)

WINDOWS = {
    "at-least-once": (Api.FETCH, Api.PRODUCE, Api.OFFSET_COMMIT),
    "exactly-once": (
        *(Api.FETCH, Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE),
        *(Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN),
    ),
}
EXACT = ("kill", "stall", "freeze", "cut", "delay", "late", "black-hole", "ghost")
AT_LARGE = (
    *("refuse", "stop-broker", "kill-broker", "freeze-broker"),
    *("bystander", "scale", "replace"),
)


@dataclass(frozen=True)
class Strike:
    """A kind of fault, and where it strikes; without an API it strikes at large."""

    kind: str
    api: Api | None = None
    moment: Moment | None = None

    def __str__(self) -> str:
        if self.api is None or self.moment is None:
            return self.kind
        return f"{self.kind} {self.window}"

    @property
    def window(self) -> str:
        if self.api is None or self.moment is None:
            return "at large"
        api = self.api.name.title().replace("_", "")
        return f"{self.moment.name.lower().replace('_', ' ')} of {api}"


def every_strike(guarantee: str) -> list[Strike]:
    exact = [
        Strike(kind, api, moment)
        for kind in EXACT
        for api in WINDOWS[guarantee]
        for moment in Moment
        # An answer that comes late to nobody is one that is lost.
        if (kind, moment) != ("ghost", Moment.BEFORE_ANSWER)
    ]
    return exact + [Strike(kind) for kind in AT_LARGE]


class Feed:
    """Produces events at a gentle rate, past all faults but the brokers' own, in a thread."""

    WORDS = (
        *("gg", "wp", "lol", "nice", "push", "mid", "now", "please", "help", "why", "sad", "you"),
        *("leave", "us", "again", "great", "save", "love", "this", "team", "what", "a", "shot"),
        *("sorry", "angry", "wow", "scary", "gross", "amazing", "we", "won", "lost", "it", "all"),
    )
    BROKEN = (b"{", b"\xff", b'{"id": 1}', b'{"text": 7}', b"[]")

    def __init__(self, stage: Stage, rng: random.Random, rate: float) -> None:
        self._stage = stage
        self._rng = rng
        self._pause = 1 / rate
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feed")
        self._numbers = count()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _feed(self) -> None:
        while not self._done.is_set():
            with suppress(KafkaError):
                producer = KafkaProducer(**self._stage.kafka.settings, linger_ms=20)
                try:
                    while not self._done.wait(self._pause):
                        producer.send(self._stage.input, self._value(), key=self._key())
                        if self._rng.random() < HOSTILE_SHARE:
                            self._attack()
                finally:
                    with suppress(KafkaError):
                        producer.close(timeout=PATIENCE)

    def _attack(self) -> None:
        """Write records that stopped workers once."""
        name = self._rng.choice(sorted(ATTACKS))
        # Faults of brokers strike here too; what of it is on the topic is what counts.
        with suppress(OSError, AssertionError), RawProducer(self._stage.kafka) as producer:
            producer.append(
                self._stage.input, self._rng.randrange(PARTITIONS), ATTACKS[name].batch()
            )

    def _key(self) -> bytes:
        return b"player-%d" % self._rng.randrange(12)

    def _value(self) -> bytes | None:
        number, kind = next(self._numbers), self._rng.random()
        if kind < 0.02:
            return None
        if kind < 0.05:
            return self._rng.choice(self.BROKEN)
        words = self._rng.choices(self.WORDS, k=self._rng.randrange(1, 12))
        return json.dumps({"id": number, "text": " ".join(words)}).encode()


@dataclass
class Slot:
    """A place in the group: its worker, and what is known of those before."""

    number: int
    process: WorkerProcess
    # Whether somebody here has ended it.
    doomed: bool = False
    not_before: float = 0.0


class Workers:
    """A group of workers in which each that has ended is started again."""

    def __init__(self, stage: Stage, settings: dict[str, str]) -> None:
        self.restarts = 0
        # Exit codes of those that were asked to stop, and of those that ended by themselves.
        self.stopped: Counter[int] = Counter()
        self.died: list[str] = []
        self._stage = stage
        cache = {"CACHE__ENABLED": "true", "CACHE__DIRECTORY": str(stage.folder / "cache")}
        self._settings = stage.settings | cache | settings
        self._slots: dict[int, Slot] = {}
        self._paused: dict[int, WorkerProcess] = {}
        self._lock = threading.RLock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="tender")

    def __enter__(self) -> Self:
        for number in range(WORKERS):
            self.add(number)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for slot in self._slots.values():
            if slot.process.running:
                slot.process.kill()

    @property
    def numbers(self) -> list[int]:
        with self._lock:
            return sorted(self._slots)

    def add(self, number: int) -> None:
        with self._lock:
            self._slots[number] = Slot(number, self._start(number))

    def kill(self, number: int) -> None:
        with self._lock:
            if slot := self._slots.get(number):
                slot.doomed = True
                slot.process.kill()

    def pause(self, number: int) -> None:
        with self._lock:
            if slot := self._slots.get(number):
                slot.process.pause()
                self._paused[number] = slot.process

    def resume(self, number: int) -> None:
        with self._lock:
            # Its place may be another's by now, or nobody's.
            process = self._paused.pop(number, None)
            if process is not None and process.running:
                process.resume()

    def stop(self, number: int, *, restart: bool) -> None:
        """Ask a worker to stop, and wait until it has."""
        with self._lock:
            slot = self._slots[number]
            slot.doomed = True
            process = slot.process
            if not restart:
                del self._slots[number]
        try:
            wait_until(lambda: _heeds_sigterm(process), f"{NAME}-{number} to be up")
            code = process.stop()
        except TimeoutError:
            self.died.append(f"{NAME}-{number} did not stop")
            process.kill()
        else:
            with self._lock:
                self.stopped[code] += 1

    def stop_all(self) -> Counter[int]:
        """Ask all to stop; returns how often each exit code came."""
        before = Counter(self.stopped)
        with ThreadPoolExecutor() as pool:
            for number in self.numbers:
                pool.submit(self.stop, number, restart=False)
        return self.stopped - before

    def logged(self, text: str) -> int:
        """Return how many lines of all logs have a text."""
        logs = self._stage.folder.glob(f"{NAME}-*.log")
        return sum(log.read_text(encoding="utf-8").count(text) for log in logs)

    def _start(self, number: int) -> WorkerProcess:
        name = f"{NAME}-{number}"
        settings = self._settings | {"KAFKA__CLIENT_ID": name}
        environment = {f"WORKER_{setting}": value for setting, value in settings.items()}
        return WorkerProcess(self._stage.folder, name, environment)

    def _tend(self) -> None:
        while not self._done.wait(0.1):
            with self._lock:
                for slot in self._slots.values():
                    if not slot.process.running and time.monotonic() > slot.not_before:
                        self._look_after(slot)

    def _look_after(self, slot: Slot) -> None:
        if not slot.doomed:
            code, last = slot.process.process.returncode, slot.process.output.splitlines()[-1:]
            self.died.append(f"{NAME}-{slot.number} ended with {code}: {' '.join(last)}")
            slot.not_before = time.monotonic() + RESTART_SECONDS
            slot.doomed = True
            return
        self.restarts += 1
        slot.doomed = False
        slot.process = self._start(slot.number)


def _heeds_sigterm(process: WorkerProcess) -> bool:
    """Tell whether a process ends in its own way if it is asked to, or has ended already."""
    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name == "SigCgt":
                return bool(int(value, 16) >> (signal.SIGTERM - 1) & 1) or not process.running
    return not process.running


class Chaos:
    """Deals faults from a shuffled deck, and keeps count of how often each has struck."""

    def __init__(self, stage: Stage, proxy: Proxy, node: Node, workers: Workers) -> None:
        self.hits: Counter[Strike] = Counter()
        self.misses: Counter[Strike] = Counter()
        self._stage = stage
        self._proxy = proxy
        self._node = node
        self._workers = workers
        self._more = count(WORKERS)
        self._lock = threading.Lock()
        self._at_large = threading.Lock()
        self._over = threading.Event()

    def reign(self, strikes: Sequence[Strike], rng: random.Random, seconds: float) -> None:
        """Strike for some time, and on until each has struck once, if that can be."""
        ends = time.monotonic() + seconds
        # On a slow machine the deck may not have gone round by then.
        last = ends + 2 * seconds + PATIENCE
        deck: list[Strike] = []

        def over() -> bool:
            missing = any(not self.hits[strike] for strike in strikes)
            return self._over.is_set() or time.monotonic() > (last if missing else ends)

        def hand(own: random.Random) -> None:
            while not over():
                with self._lock:
                    if not deck:
                        deck.extend(rng.sample(strikes, len(strikes)))
                        deck.sort(key=lambda strike: -self.hits[strike])
                    strike = deck.pop()
                self._count(strike, hit=self._strike(strike, own))
                time.sleep(own.uniform(0, 1))

        with ThreadPoolExecutor(HANDS) as pool:
            hands = [pool.submit(hand, random.Random(rng.random())) for _ in range(HANDS)]  # noqa: S311 - faults that a seed repeats, no secret
            try:
                for done in hands:
                    done.result()
            finally:
                self._over.set()

    def _count(self, strike: Strike, *, hit: bool) -> None:
        with self._lock:
            (self.hits if hit else self.misses)[strike] += 1
            with (self._stage.folder / "faults.log").open("a") as log:
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                print(now, "hit " if hit else "miss", strike, file=log)

    def _strike(self, strike: Strike, rng: random.Random) -> bool:
        """Strike once, see the consequences through, and tell whether it struck."""
        if strike.api is None:
            with self._at_large:
                getattr(self, f"_{strike.kind.replace('-', '_')}")(rng)
            return True
        victims: list[int] = []
        armed = self._arm(strike, victims, rng)

        def struck() -> bool:
            return any(each.struck.is_set() for each in armed)

        with suppress(TimeoutError):
            wait_until(struck, str(strike), TURN_SECONDS)
        for each in armed:
            each.disarm()
        if not any(each.count for each in armed):
            return False
        # What strikes as it is disarmed has yet to act.
        wait_until(struck, str(strike))
        self._see_through(strike, victims, rng)
        return True

    def _arm(self, strike: Strike, victims: list[int], rng: random.Random) -> list[Armed]:
        """Arm for whoever comes first; a fault of a process, for each, which is then a victim."""
        assert strike.api is not None
        assert strike.moment is not None
        fault = Fault(api=strike.api, moment=strike.moment, action=Cut(), client_id=f"{NAME}-")
        actions: dict[str, Action] = {
            "cut": Cut(),
            "delay": Delay(rng.uniform(*SHORT)),
            "late": Delay(rng.uniform(*LATE)),
            "black-hole": BlackHole(),
            "ghost": Ghost(rng.uniform(*LATE)),
        }
        if strike.kind in actions:
            return [self._proxy.arm(replace(fault, action=actions[strike.kind]))]
        function, then = (
            (self._workers.kill, Cut()) if strike.kind == "kill" else (self._workers.pause, None)
        )

        def act(number: int) -> None:
            with self._lock:
                if victims:
                    return
                victims.append(number)
            function(number)

        return [
            self._proxy.arm(
                replace(
                    fault, action=Call(partial(act, number), then), client_id=f"{NAME}-{number}"
                )
            )
            for number in self._workers.numbers
        ]

    def _see_through(self, strike: Strike, victims: list[int], rng: random.Random) -> None:
        if strike.kind in {"stall", "freeze"}:
            time.sleep(rng.uniform(*(SHORT if strike.kind == "stall" else LONG)))
            self._workers.resume(victims[0])
        elif strike.kind == "black-hole":
            time.sleep(rng.uniform(*LATE))
            self._proxy.heal()

    # What strikes at large, by its kind.

    def _refuse(self, rng: random.Random) -> None:
        self._proxy.refuse()
        time.sleep(rng.uniform(*rng.choice([SHORT, LATE, LONG])))
        self._proxy.accept()

    def _stop_broker(self, _: random.Random) -> None:
        self._node.restart()

    def _kill_broker(self, _: random.Random) -> None:
        self._node.kill()
        self._node.start()

    def _freeze_broker(self, rng: random.Random) -> None:
        self._node.pause()
        time.sleep(rng.uniform(*rng.choice([SHORT, LATE, LONG])))
        self._node.resume()

    def _bystander(self, rng: random.Random) -> None:
        """Let another consumer join the group, which takes partitions and does nothing."""
        with suppress(KafkaError):
            member = KafkaConsumer(
                **self._stage.kafka.settings,
                client_id="bystander",
                group_id=self._stage.group,
                enable_auto_commit=False,
                session_timeout_ms=3000,
                heartbeat_interval_ms=500,
                partition_assignment_strategy=[CooperativeStickyAssignor],
            )
            try:
                member.subscribe([self._stage.input])
                ends = time.monotonic() + rng.uniform(*LATE)
                while time.monotonic() < ends:
                    member.poll(timeout_ms=100, max_records=1)
            finally:
                member.close()

    def _scale(self, rng: random.Random) -> None:
        """Let one more worker join for a while."""
        number = next(self._more)
        self._workers.add(number)
        time.sleep(rng.uniform(*LONG))
        self._workers.stop(number, restart=False)

    def _replace(self, rng: random.Random) -> None:
        """Stop a worker in its own way; another takes its place."""
        self._workers.stop(rng.choice(self._workers.numbers), restart=True)


@dataclass
class Result:
    """What a run has shown."""

    guarantee: str
    seed: int
    report: Report
    hits: Counter[Strike]
    misses: Counter[Strike]
    restarts: int
    abandoned: int
    seconds: float
    drained: bool
    died: list[str]
    stopped: Counter[int]
    stopped_at_last: Counter[int]
    never_hit: list[Strike]

    @property
    def bound_of_duplicates(self) -> int:
        """Return how many labels may come again: a chunk of each worker for each fault."""
        if self.guarantee == "exactly-once":
            return 0
        return self.hits.total() * (WORKERS + 1) * CHUNK_RECORDS

    def problems(self) -> list[str]:
        """Return what must not be."""
        counts = self.report.counts()
        wrong = ("lost", "out_of_order", "mislabelled", "unexpected")
        problems = [f"{counts[name]} {name}" for name in wrong if counts[name]]
        if counts["duplicated"] > self.bound_of_duplicates:
            problems.append(f"{counts['duplicated']} duplicated")
        problems += self.died
        problems += [f"never hit: {strike}" for strike in self.never_hit]
        if not self.drained:
            problems.append("what was left was not labelled")
        if set(self.stopped_at_last) != {0}:
            problems.append(f"at last they ended with {dict(self.stopped_at_last)}")
        return problems

    def table(self) -> str:
        """Return how often each fault has hit each window."""
        windows = sorted(
            {strike.window for strike in self.hits}, key=lambda w: (w == "at large", w)
        )
        lines = []
        for window in windows:
            here = {s.kind: n for s, n in self.hits.items() if s.window == window}
            cells = "  ".join(f"{kind} {number}" for kind, number in sorted(here.items()))
            lines.append(f"{window:<38}{cells}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "guarantee": self.guarantee,
            "seed": self.seed,
            "seconds": round(self.seconds),
            "faults": self.hits.total(),
            "kinds": len(self.hits),
            "missed": self.misses.total(),
            "restarts": self.restarts,
            "abandoned": self.abandoned,
            "stopped": dict(self.stopped),
            **self.report.counts(),
            "problems": self.problems(),
        }

    def __str__(self) -> str:
        problems = "\n".join(self.problems()) or "all is as promised"
        head = f"{self.guarantee}, seed {self.seed}, {self.seconds:.0f} s"
        return f"{head}\n\n{self.table()}\n\n{self.report}\n\n{problems}"


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    guarantee: str
    seed: int
    seconds: float
    strikes: Sequence[Strike]
    rate: float = 40.0


def run(plan: Plan, cluster: Cluster, folder: Path, classifier: Classifier) -> Result:
    """Let faults strike, then see what has become of it all."""
    node, rng = cluster.node, random.Random(plan.seed)  # noqa: S311 - faults that a seed repeats, no secret
    names = (f"{NAME}-{plan.guarantee}-{plan.seed}-{number}" for number in count())
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(node.proxy_port, node.proxied_port))
        address = f"{HOST}:{node.proxy_port}"
        stage = Stage(cluster, names, folder, partitions=PARTITIONS, bootstrap=address)
        settings = SETTINGS | {"KAFKA__GUARANTEE": plan.guarantee}
        workers = stack.enter_context(Workers(stage, settings))
        chaos = Chaos(stage, proxy, node, workers)
        started = time.monotonic()
        with Feed(stage, random.Random(rng.random()), plan.rate):  # noqa: S311 - faults that a seed repeats, no secret
            wait_until(lambda: bool(cluster.committed(stage.group, stage.input)), "the group")
            chaos.reign(plan.strikes, rng, plan.seconds)
        seconds = time.monotonic() - started
        drained = drain(stage)
        codes = workers.stop_all()
        stage.wait_until_closed()
        return Result(
            guarantee=plan.guarantee,
            seed=plan.seed,
            report=verify(stage, classifier),
            hits=chaos.hits,
            misses=chaos.misses,
            restarts=workers.restarts,
            abandoned=workers.logged("chunk abandoned"),
            seconds=seconds,
            drained=drained,
            died=workers.died,
            stopped=workers.stopped - codes,
            stopped_at_last=codes,
            never_hit=[strike for strike in plan.strikes if not chaos.hits[strike]],
        )


def drain(stage: Stage) -> bool:
    """Wait until everything is labelled; tell whether it came to that."""
    ends = {partition: end for partition, end in stage.ends().items() if end}

    def done() -> bool:
        committed = stage.kafka.committed(stage.group, stage.input)
        return all(committed.get(partition, 0) >= end for partition, end in ends.items())

    try:
        wait_until(done, "all to be labelled", DRAIN_SECONDS)
    except TimeoutError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Run workers under random faults.")
    parser.add_argument("--guarantee", choices=list(WINDOWS), help="default: one after the other")
    parser.add_argument("--seconds", type=float, default=900, help="of faults, for each")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311 - faults that a seed repeats, no secret
    options = parser.parse_args()
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    classifier = Classifier.load()
    results = []
    for guarantee in [options.guarantee] if options.guarantee else WINDOWS:
        plan = Plan(guarantee, options.seed, options.seconds, every_strike(guarantee))
        folder = FOLDER / f"{guarantee}-{plan.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{guarantee}, seed {plan.seed}, {plan.seconds:g} s, logs in {folder}", flush=True)
        with Cluster(folder / "kafka") as cluster:
            results.append(run(plan, cluster, folder / "workers", classifier))
        print(f"{results[-1]}\n", flush=True)
    for result in results:
        print(json.dumps(result.as_dict()))
    return int(any(result.problems() for result in results))


if __name__ == "__main__":
    sys.exit(main())
