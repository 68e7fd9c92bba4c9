"""An endless chat made from the examples, in the shape of real game chat.

Four messages in ten are of those that are said again and again, by Zipf's law. The others are new:
their words follow each other as they do somewhere in the examples. The shape is that of 37,343
lines of game chat: the 10, 100 and 1,000 most frequent messages are 16, 28 and 41% of all, and a
message has 5.5 tokens on average, 10 at the 95th and 15 at the 99th percentile.
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
# A message's words are log-normal: median, and deviation of the logarithm.
_NEW_WORDS: Final = (2.2, 0.65)
_FOLLOWING_SHARE: Final = 0.7
_BROKEN_SHARE: Final = 0.002


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A record for Kafka: its user as the key, or none where the value is broken."""

    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class _Example:
    """A line of the examples; without an event it is broken."""

    line: bytes
    event: Event | None

    def field(self, name: str) -> str:
        """Return a field beside the text; empty where there is none."""
        return str(json.loads(self.event.kept.get(name, '""'))) if self.event else ""


def example_messages() -> list[ChatRecord]:
    """Return the examples in their order, with the broken ones."""
    return [
        ChatRecord(example.field(_USER).encode() or None, example.line) for example in _examples()
    ]


class ChatStream:
    """An endless chat; the same seed gives the same."""

    def __init__(self, seed: int) -> None:
        """Read the examples, and find what is said again and again, whatever the seed."""
        self._random = random.Random(0)  # noqa: S311 - no secret
        examples = _examples()
        self._said = [example for example in examples if example.event]
        self._broken = [example.line for example in examples if not example.event]
        texts = [e.event.text for e in examples if e.event and e.event.text.isprintable()]
        # In one alphabet, for texts that look as if somebody had meant them.
        said = [text.split() for text in texts if text.isascii()]
        self._words = [word for words in said for word in words]
        self._following: dict[str, list[str]] = defaultdict(list)
        for words in said:
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
            yield self._made_up(words, mistyped=words <= _FAMILIAR_MOST_WORDS)

    def messages(self) -> Iterator[ChatRecord]:
        """Yield records without end, of which two in a thousand are broken."""
        for number, text in zip(count(1), self.texts(), strict=False):
            if self._random.random() < _BROKEN_SHARE:
                yield ChatRecord(None, self._random.choice(self._broken))
                continue
            example = self._random.choice(self._said)
            content = {"id": f"d-{number}", "text": text}
            content |= {name: example.field(name) for name in (_USER, _ROOM)}
            yield ChatRecord(content[_USER].encode(), json.dumps(content).encode())

    def _familiar_texts(self, texts: Sequence[str]) -> list[str]:
        """Return short texts: those of the examples by how often they are said, then made-up ones."""
        short = Counter(text for text in texts if 0 < len(text.split()) <= _FAMILIAR_MOST_WORDS)
        familiar = dict.fromkeys(text for text, _ in short.most_common())
        while len(familiar) < _FAMILIAR_TEXTS:
            words = self._random.randint(1, _FAMILIAR_MOST_WORDS)
            familiar[self._made_up(words)] = None
        return list(familiar)[:_FAMILIAR_TEXTS]

    def _made_up(self, words: int, *, mistyped: bool = False) -> str:
        """Return a text of so many words; a short one is new by a typing mistake."""
        said = [self._random.choice(self._words)]
        while len(said) < words:
            goes_on = self._random.random() < _FOLLOWING_SHARE
            following = self._following.get(said[-1]) if goes_on else None
            said.append(self._random.choice(following or self._words))
        if mistyped:
            word = self._random.choice(said)
            place = self._random.randrange(len(word))
            letter = self._random.choice(ascii_lowercase)
            said[said.index(word)] = word[:place] + letter + word[place + 1 :]
        return " ".join(said)


def _examples() -> list[_Example]:
    decode = json_decoder(Fields(keep=(_USER, _ROOM)))
    examples = []
    for number, line in enumerate(EXAMPLES.read_bytes().splitlines(), 1):
        item = decode(Record(line, FilePlace(EXAMPLES.name, number)))
        examples.append(_Example(line, item if isinstance(item, Event) else None))
    return examples
