"""examples/produce_and_read.py, on a real broker with a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.test_examples import output_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kafka.stage import Stage


def test_messages_are_sent_and_their_labels_read(stage: Stage, tmp_path: Path) -> None:
    # The label of an earlier message is not taken for one of the example's.
    stage.produce(["so happy for you"])
    stage.worker()
    stage.wait_until_done()
    topics = ["--input", stage.input, "--output", stage.output]
    lines = output_of(
        "produce_and_read.py", "--brokers", stage.kafka.bootstrap, *topics, folder=tmp_path
    )
    assert len(lines) == 3
    assert "'that was the best game of my life, thank you all': joy" in lines
    assert "'I am scared to go down there alone': fear" in lines
