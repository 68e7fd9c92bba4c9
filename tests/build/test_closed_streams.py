"""The commands that build, as the real program, with standard streams closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.test_closed_streams import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "command", ["finetune --train absent.tsv --dev absent.tsv -o out", "prepare absent -o out"]
)
def test_a_command_that_builds_says_what_is_wrong(tmp_path: Path, command: str) -> None:
    code, complaint = run(command, "<&- >&-", tmp_path)
    assert (code, "Traceback" in complaint) == (1, False)
    assert complaint.startswith("worker: ")
