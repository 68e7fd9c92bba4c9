"""Creates an endless chat from the examples, in the shape of real game chat.

Four messages in ten are familiar ones, which are said again and again, as often as Zipf's law gives.
The others are new: their words follow each other as they do somewhere in the examples. The shape was
measured on 37,343 lines of game chat: the 10, 100 and 1,000 most frequent messages are 16, 28 and 41%
of all, and a message has 5.5 tokens on average, 10 at the 95th and 15 at the 99th percentile.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from math import log
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Final

from worker.events.decoding import Fields, json_decoder
from worker.events.records import Event, FilePlace, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXAMPLES: Final = Path(__file__).with_name("chat.jsonl")
_USER: Final = "user"
_ROOM: Final = "room"
_FAMILIAR_TEXTS: Final = 1000
_FAMILIAR_SHARE: Final = 0.4
_FAMILIAR_MOST_WORDS: Final = 3
# The number of words of a message is log-normal: its median, and the deviation of its logarithm.
_NEW_WORDS: Final = (2.2, 0.65)
_FOLLOWING_SHARE: Final = 0.7
_BROKEN_SHARE: Final = 0.002


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A record for Kafka; its key is the user, or None where the value is broken."""

    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class _Example:
    """A line of the examples; it is broken where it has no event."""

    line: bytes
    event: Event | None

    def field(self, name: str) -> str:
        """Return the value of a field; empty where there is none."""
        return str(json.loads(self.event.kept.get(name, '""'))) if self.event else ""


def example_messages() -> list[ChatRecord]:
    """Return the examples in their order, including the broken ones."""
    return [
        ChatRecord(example.field(_USER).encode() or None, example.line) for example in _examples()
    ]


class ChatStream:
    """An endless chat; the same seed gives the same chat."""

    def __init__(self, seed: int) -> None:
        """Read the examples and choose the familiar texts, which do not depend on the seed."""
        self._random = random.Random(0)  # noqa: S311 - a chat is no secret
        examples = _examples()
        self._whole = [example for example in examples if example.event]
        self._broken = [example.line for example in examples if not example.event]
        texts = [e.event.text for e in examples if e.event and e.event.text.isprintable()]
        # Words of one alphabet give texts that look as if somebody had meant them.
        ascii_texts = [text.split() for text in texts if text.isascii()]
        self._words = [word for words in ascii_texts for word in words]
        self._following: dict[str, list[str]] = defaultdict(list)
        for words in ascii_texts:
            for word, following in pairwise(words):
                self._following[word].append(following)
        self._familiar = self._familiar_texts(texts)
        self._weights = list(accumulate(1 / rank for rank in range(1, _FAMILIAR_TEXTS + 1)))
        self._random.seed(seed)

    def texts(self) -> Iterator[str]:
        """Yield texts without end."""
        median, deviation = _NEW_WORDS
        while True:
            if self._random.random() < _FAMILIAR_SHARE:
                yield from self._random.choices(self._familiar, cum_weights=self._weights)
                continue
            words = max(1, round(self._random.lognormvariate(log(median), deviation)))
            yield self._new_text(words, mistyped=words <= _FAMILIAR_MOST_WORDS)

    def messages(self) -> Iterator[ChatRecord]:
        """Yield records without end, of which two in a thousand are broken."""
        for number, text in zip(count(1), self.texts(), strict=False):
            if self._random.random() < _BROKEN_SHARE:
                yield ChatRecord(None, self._random.choice(self._broken))
                continue
            example = self._random.choice(self._whole)
            content = {"id": f"d-{number}", "text": text}
            content |= {name: example.field(name) for name in (_USER, _ROOM)}
            yield ChatRecord(content[_USER].encode(), json.dumps(content).encode())

    def _familiar_texts(self, texts: Sequence[str]) -> list[str]:
        """Return short texts: those of the examples by how often they come, then new ones."""
        short = Counter(text for text in texts if 0 < len(text.split()) <= _FAMILIAR_MOST_WORDS)
        familiar = dict.fromkeys(text for text, _ in short.most_common())
        while len(familiar) < _FAMILIAR_TEXTS:
            words = self._random.randint(1, _FAMILIAR_MOST_WORDS)
            familiar[self._new_text(words)] = None
        return list(familiar)[:_FAMILIAR_TEXTS]

    def _new_text(self, number: int, *, mistyped: bool = False) -> str:
        """Return a text of a number of words; a mistyped word keeps short texts from repeating."""
        words = [self._random.choice(self._words)]
        while len(words) < number:
            goes_on = self._random.random() < _FOLLOWING_SHARE
            following = self._following.get(words[-1]) if goes_on else None
            words.append(self._random.choice(following or self._words))
        if mistyped:
            word = self._random.choice(words)
            index = self._random.randrange(len(word))
            letter = self._random.choice(ascii_lowercase)
            words[words.index(word)] = word[:index] + letter + word[index + 1 :]
        return " ".join(words)


def _examples() -> list[_Example]:
    decode = json_decoder(Fields(keep=(_USER, _ROOM)))
    examples = []
    for number, line in enumerate(EXAMPLES.read_bytes().splitlines(), 1):
        item = decode(Record(line, FilePlace(EXAMPLES.name, number)))
        examples.append(_Example(line, item if isinstance(item, Event) else None))
    return examples
