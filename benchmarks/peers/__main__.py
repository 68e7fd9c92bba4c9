"""What would a user get who picked something else? Other engines, other ways from Kafka to Kafka.

    python -m benchmarks.peers [--texts chat.txt] [--rounds 5] [--size mini] [--write FOLDER]

The same messages and the same model, random weights of 6 layers of 384 (mini) or 768 (base, as
DistilBERT), go through each peer: texts in, labels out, tokenizers included. Every peer runs in a
pinned virtual environment of its own under `build/peers`, made when first needed (7 GB in all, most
of it torch's), with one thread on the same core, round by round in turn in one run. Figures are
medians of the rounds, ratios too.

Messages differ in their tokens, so neither caches nor duplicates play a part; only the row of
repeats has the chat as it is, and a table that is empty at first. The others pad: with 32 messages
at hand all of them, in the order they came; with 2,048 at hand 32 of similar length at a time, as a
careful user does (of 16 to 256, 32 is at or near the best for those in int8). CTranslate2 knows no
head of DistilBERT, so numpy computes it.

"Same alone or in a batch" compares the logits of 256 texts alone and among 32, "off fp32" those of
a peer with those of transformers in fp32, as the largest difference over the largest logit.

`--texts` has a message a line; of different ones the route takes up to 20,000, and 5,000 at least.
Needs the extra `build`; the route needs Java and the broker's jars (`make build/kafka/.jars`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cores import take_core
from benchmarks.engine import SIZES
from benchmarks.peers import engines, kafka_route
from benchmarks.peers.engines import MESSAGES, Engines, measure_engines
from benchmarks.peers.kafka_route import CONTENDERS, KafkaRoute, measure_kafka_route
from benchmarks.peers.models import make_files, read_texts
from worker.bench.machine import machine

WIDTH = 44


def engine_figures(measured: Engines) -> dict[str, dict[str, Any]]:
    """Return each peer's figures by name; ratios are how many times as fast this worker is."""
    return {
        name: {
            "messages_a_second": {n: measured.speed(name, n) for n in each},
            "ours_faster": {n: measured.ours_faster(name, n) for n in each}
            if engines.OURS in measured.labelled
            else {},
            "changed_by_batch": measured.changed_by_batch(name),
            "off_fp32": measured.off_fp32(name),
        }
        for name, each in measured.labelled.items()
    }


def kafka_figures(measured: KafkaRoute) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "messages_a_second": measured.median(name).rate,
            "cpu_us_a_message": 1e6 * measured.median(name).cpu,
            "ours_faster": measured.ours_faster(name)
            if kafka_route.OURS in measured.costs
            else None,
        }
        for name in measured.costs
    }


def print_engines(figures: dict[str, dict[str, Any]]) -> None:
    print("\ntexts to labels: messages/s, and in brackets how many times as fast this worker is")
    heads = "".join(f"{f'{number:,} at hand':>18}" for number in MESSAGES)
    print(f"{'':{WIDTH}}{heads}{'same alone or in a batch':>28}{'off fp32':>10}")
    for name, each in figures.items():
        cells = "".join(f"{speed_and_ratio(each, number):>18}" for number in MESSAGES)
        changed, off = each["changed_by_batch"], each["off_fp32"]
        exact = f"no (differs by {changed:.0e})" if changed else "yes"
        print(f"{name:{WIDTH}}{cells}{exact:>28}{'' if off is None else f'{off:.0e}':>10}")


def speed_and_ratio(each: dict[str, Any], number: int) -> str:
    if number not in each["messages_a_second"]:
        return ""
    ratio = each["ours_faster"].get(number)
    brackets = "" if ratio is None else f" ({ratio:.2f})"
    return f"{each['messages_a_second'][number]:,.0f}{brackets}"


def print_kafka_figures(figures: dict[str, dict[str, Any]]) -> None:
    print("\nKafka to Kafka: messages/s, how many times as fast worker run is, CPU a message")
    promises = {contender.name: contender.promise for contender in CONTENDERS}
    for name, each in figures.items():
        ratio = "" if each["ours_faster"] is None else f"({each['ours_faster']:.2f})"
        cpu = f"{each['cpu_us_a_message']:,.0f} us"
        speed = f"{each['messages_a_second']:,.0f}"
        print(f"{name:{WIDTH}}{speed:>8}{ratio:>9}{cpu:>11}  {promises[name]}")


def show(content: dict[str, Any]) -> None:
    print(f"{content['machine']}\n{content['size']}, {content['rounds']} rounds")
    if content["engines"]:
        print_engines(content["engines"])
        print(f"other processes had the core for {content['core_taken_by_others']:.0%} of the time")
    if content["road"]:
        print_kafka_figures(content["road"])
    for name, reason in content["not_measured"].items():
        print(f"not measured: {name}: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure other engines and roads beside ours.")
    parser.add_argument("--texts", type=Path, help="a message a line; default: made up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="for peers-SIZE.json")
    options = parser.parse_args()
    where, core = machine(), take_core()
    texts = read_texts(options.texts)
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), options.size, texts)
        by_engine = measure_engines(Path(name), core, options.rounds)
        by_kafka = measure_kafka_route(Path(name), texts.distinct, core, options.rounds)
    content = {
        "machine": where,
        "size": options.size,
        "rounds": options.rounds,
        "core_taken_by_others": by_engine.taken_away(),
        "engines": engine_figures(by_engine),
        "road": kafka_figures(by_kafka),
        "not_measured": by_engine.missed | by_kafka.missed,
    }
    show(content)
    if options.write:
        text = json.dumps(content, indent=2) + "\n"
        path = options.write / f"peers-{options.size}.json"
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
