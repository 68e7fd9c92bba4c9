"""`worker dead-letters redrive`: sends records back to where they came from, each exactly once.

What a redrive selects is fixed when it begins: only dead letters up to the end that the topic has
then, so that it never selects a record that it sent back itself and that failed again. Receipts say
what has been sent (see `receipts`), so the same command continues after any end, and no redrive sends
a record again unless it is asked to. Each record carries how many rounds it has gone, and a limit
ends them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.dead_letters.originals import Originals
from worker.dead_letters.receipts import Ledger, Receipt, stretches
from worker.dead_letters.sending import Outgoing, Sender
from worker.dead_letters.topic import DeadLetterTopic, is_receipt, letter_of
from worker.errors import WorkerError
from worker.events.records import ErrorKind
from worker.terminal.confirmations import confirmed
from worker.terminal.sentences import counted, escaped, show
from worker.transports.kafka.clients import explained_kafka_errors
from worker.transports.kafka.publication import coordinates_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from kafka.consumer.fetcher import ConsumerRecord

    from worker.dead_letters.letters import Filters
    from worker.dead_letters.receipts import Position
    from worker.settings.schema import KafkaSettings


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters to send back; with `again`, also those that were sent back before."""

    filters: Filters
    max_rounds: int
    again: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what distinguishes this selection from others; receipts hold it."""
        again = {"again": True} if self.again else {}
        return {**self.filters.as_json(), "max_rounds": self.max_rounds, **again}


@dataclass(slots=True)
class _Found:
    """What the filters select on the topic.

    `letters` has the target topic of each letter that can be sent. The others are counted: those of
    topics that nobody has named, those that have reached the limit of rounds, those that are no
    event, and those whose event, which they do not carry, is gone.
    """

    letters: dict[Position, str] = field(default_factory=dict)
    elsewhere: int = 0
    at_limit: int = 0
    no_events: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """A redrive that is about to begin or to continue.

    `until` has the offset of each partition at which it ends, `left` the letters that it has to send
    and their targets. The others of its selection are counted: those that were sent before, and
    those that came `later`, which are for the next redrive.
    """

    number: int
    until: Mapping[int, int]
    left: dict[Position, str]
    sent_before: int
    later: int


def redrive(settings: KafkaSettings, selection: Selection, *, yes: bool) -> None:
    """Say how many records would be sent to which topic, and send them if that is confirmed.

    Raises:
        ConfigurationError: the dead-letter topic does not exist.
        WorkerError: not everything was sent; the same command continues the redrive.

    """
    with (
        explained_kafka_errors(),
        DeadLetterTopic(settings) as topic,
        Originals(settings) as originals,
    ):
        ledger = Ledger()
        targets = {*settings.input_topics, selection.filters.source}
        found = _scan(topic, originals, selection, ledger, targets)
        plan = _plan(found, selection, ledger, topic.ends)
        _report(plan, found, selection, ledger)
        if not plan.left:
            return
        _check_targets(topic, plan)
        if confirmed(f"send {counted(len(plan.left), 'record')} back?", yes=yes):
            with Sender(settings) as sender:
                # Another redrive may have sent records while this one was planned and confirmed.
                for records in topic.read(topic.ends, topic.log_ends()):
                    _add_receipts(records, ledger)
                for position in _done(plan.left, selection, ledger, plan.number):
                    del plan.left[position]
                receipts = partial(_receipts, selection, plan)
                sent = _send(topic, originals, sender, plan, receipts)
            show(f"{counted(sent, 'record')} sent back")


def _scan(
    topic: DeadLetterTopic,
    originals: Originals,
    selection: Selection,
    ledger: Ledger,
    targets: AbstractSet[str | None],
) -> _Found:
    found = _Found()
    for records in topic.read(topic.begin, topic.ends):
        _add_receipts(records, ledger)
        for record in records:
            letter = letter_of(record)
            if letter is None or not selection.filters.take(letter):
                continue
            if letter.kind == ErrorKind.UNDECODABLE:
                found.no_events += 1
            elif letter.source not in targets:
                found.elsewhere += 1
            elif letter.rounds >= selection.max_rounds:
                found.at_limit += 1
            elif originals.whole(letter) is None:
                found.gone += 1
            else:
                found.letters[record.partition, record.offset] = letter.source
    return found


def _add_receipts(records: Iterable[ConsumerRecord], ledger: Ledger) -> None:
    for record in records:
        if is_receipt(record):
            ledger.add(record)


def _plan(found: _Found, selection: Selection, ledger: Ledger, ends: Mapping[int, int]) -> _Plan:
    """Continue the last redrive of this selection if it has something left, or begin the next."""
    content = selection.as_json()
    number = ledger.last_number(content)
    until = ledger.until(content, number)
    done = _done(found.letters, selection, ledger, number)
    left = _left(found, until, done)
    if not left:
        number, until = number + 1, ends
        done = _done(found.letters, selection, ledger, number)
        left = _left(found, until, done)
    return _Plan(number, until, left, len(done), len(found.letters) - len(done) - len(left))


def _left(
    found: _Found, until: Mapping[int, int], done: AbstractSet[Position]
) -> dict[Position, str]:
    return {
        (partition, offset): target
        for (partition, offset), target in found.letters.items()
        if offset < until.get(partition, 0) and (partition, offset) not in done
    }


def _done(
    positions: Iterable[Position], selection: Selection, ledger: Ledger, number: int
) -> set[Position]:
    """Return which of some letters a redrive must not send.

    Those are what any redrive has sent; with `again`, only what this one has sent.
    """
    content = selection.as_json()
    return {
        position
        for position in positions
        if (
            ledger.has_sent(content, number, position)
            if selection.again
            else ledger.has_been_sent(position)
        )
    }


def _report(plan: _Plan, found: _Found, selection: Selection, ledger: Ledger) -> None:
    for target, number in sorted(Counter(plan.left.values()).items()):
        show(f"{counted(number, 'record')} to send back to {escaped(target)}")
    if plan.left:
        show("each goes behind the records that came since, so the order within its key is lost")
    else:
        show("there is nothing to send back")
    advice = "" if selection.again else "; --again sends them once more"
    for number, what in (
        (plan.sent_before, f"sent back before{advice}"),
        (
            found.elsewhere,
            "left out because their topics are not among kafka.input_topics; see --topic",
        ),
        (found.at_limit, "left out because of --max-rounds"),
        (found.no_events, "left out because what cannot be decoded is no event"),
        (found.gone, "left out because events that they do not carry are gone from their topics"),
        (plan.later, "left to the next redrive, because this one continues an earlier one"),
    ):
        if number:
            verb = "was" if number == 1 else "were"
            show(f"{counted(number, 'dead letter')} {verb} {what}")
    if ledger.not_understood:
        receipts = counted(ledger.not_understood, "receipt")
        show(
            f"{receipts} not understood: if a newer worker has written them, use that one, or "
            "records are sent twice"
        )


def _check_targets(topic: DeadLetterTopic, plan: _Plan) -> None:
    for target in sorted(set(plan.left.values())):
        if not topic.partitions_of(target):
            raise WorkerError(
                f"the topic {escaped(target)}, which dead letters came from, does not exist",
                "create it, or select other letters with --topic",
            )


def _send(
    topic: DeadLetterTopic,
    originals: Originals,
    sender: Sender,
    plan: _Plan,
    receipts: Callable[[Mapping[int, Sequence[int]]], dict[int, bytes]],
) -> int:
    begin: dict[int, int] = {}
    ends: dict[int, int] = {}
    for partition, offset in plan.left:
        begin[partition] = min(offset, begin.get(partition, offset))
        ends[partition] = max(offset + 1, ends.get(partition, 0))
    partitions = {target: topic.partitions_of(target) for target in set(plan.left.values())}
    sent = 0
    for records in topic.read(begin, ends):
        batch = {}
        offsets = defaultdict(list)
        for record in records:
            letter = letter_of(record)
            if letter is None or (record.partition, record.offset) not in plan.left:
                continue
            if (whole := originals.whole(letter)) is not None:
                # It goes to its old partition, which its producer may have chosen by other rules.
                exists = letter.partition in partitions[letter.source]
                target = letter.partition if exists else None
                batch[coordinates_of(record)] = Outgoing(whole, target)
                offsets[record.partition].append(record.offset)
        if batch:
            sender.send(batch, receipts(offsets))
            sent += len(batch)
    return sent


def _receipts(
    selection: Selection, plan: _Plan, offsets: Mapping[int, Sequence[int]]
) -> dict[int, bytes]:
    return {
        partition: Receipt(
            selection=selection.as_json(),
            number=plan.number,
            until=dict(plan.until),
            sent=stretches(part),
        )
        .model_dump_json()
        .encode()
        for partition, part in offsets.items()
    }
