"""Encodes labelled events and dead letters, each as one JSON object in one line."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson

from worker.events.records import FilePlace

if TYPE_CHECKING:
    from worker.events.records import DeadLetter, LabelledEvent

OUTPUT_FIELDS: Final = ("id", "labels", "scores", "model", "digest", "truncated", "text")

# One encoder for all calls, because json.dumps would create a new one for each.
to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class LabelEncoder:
    """Encodes labelled events as JSON; the same event and model give the same bytes."""

    model: str
    digest: str
    include_text: bool = False

    def encode(self, labelled: LabelledEvent) -> bytes:
        """Return one JSON object in one line, without a line end.

        Scores are the shortest decimals that read back as the same float32. `truncated` is there,
        and true, only where the text was longer than the model reads.
        """
        event, result = labelled.event, labelled.classification
        names, packed = result.scores.names, result.scores.packed
        shared = _result(result.labels, names, packed, self.model, self.digest)
        line = f'{{"id":{to_json(event.id)},{shared}'
        if result.truncated:
            line += ',"truncated":true'
        for name, value in event.kept.items():
            line += f",{to_json(name)}:{value}"
        if self.include_text:
            line += f',"text":{to_json(event.text)}'
        return _utf8(line + "}")


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """Return a dead letter as one JSON object in one line, without a line end.

    The original bytes are in `value`, or in `value_base64` if they are not UTF-8.
    """
    place = letter.record.place
    content: dict[str, object] = (
        {"source": place.source, "line": place.line}
        if isinstance(place, FilePlace)
        else {"topic": place.topic, "partition": place.partition, "offset": place.offset}
    )
    content |= {"kind": letter.kind, "reason": letter.reason}
    if isinstance(place, FilePlace) and place.part:
        content["part"] = place.part
    try:
        content["value"] = letter.record.value.decode()
    except UnicodeDecodeError:
        content["value_base64"] = base64.b64encode(letter.record.value).decode()
    return _utf8(to_json(content))


@lru_cache(maxsize=4096)
def _result(
    given: tuple[str, ...],
    labels: tuple[str, ...],
    packed: bytes,
    model: str,
    digest: str,
) -> str:
    """Return the JSON between the id and the kept fields, which most messages share with others.

    `given` are the labels of the message; `packed` has a float32 for each of the model's `labels`.
    """
    array = np.frombuffer(packed, dtype=np.float32)
    numbers = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
    return _template(given, labels, model, digest) % tuple(numbers[: len(labels)])


@lru_cache(maxsize=1024)
def _template(given: tuple[str, ...], labels: tuple[str, ...], model: str, digest: str) -> str:
    """Return the same JSON with %s in place of each score."""
    scores = ",".join(f"{to_json(label)}:\0" for label in labels)
    line = (
        f'"labels":{to_json(given)},"scores":{{{scores}}},'
        f'"model":{to_json(model)},"digest":{to_json(digest)}'
    )
    # JSON escapes NUL, so it stands for the scores alone while percent signs are doubled.
    return line.replace("%", "%%").replace("\0", "%s")


def _utf8(line: str) -> bytes:
    try:
        return line.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair cannot be UTF-8; in JSON it can be an escape.
        escaped = (c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in line)
        return "".join(escaped).encode()
