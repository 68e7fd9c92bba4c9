"""What labelling commands are made of: what a classifier leaves alone in the process around it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker.assembly import load_model
from worker.errors import ConfigurationError
from worker.inference import engine
from worker.inference.artifact import BUILT_IN_MODEL
from worker.settings.schema import Settings

# Some versions of Python have frozen objects from the start.
STATE = "print(gc.get_freeze_count() > frozen, gc.get_threshold() == threshold)"
LOADED = {
    "the Python API": "Classifier.load()",
    "a command's classifier": "open_classifier(settings, load_artifact(BUILT_IN_MODEL, {}))",
}


def output_of(code: str) -> str:
    program = f"""
import gc
frozen, threshold = gc.get_freeze_count(), gc.get_threshold()
from worker import Classifier
from worker.assembly import collect_garbage_rarely, open_classifier
from worker.inference import engine
from worker.inference.artifact import BUILT_IN_MODEL, load_artifact
from worker.settings.schema import Settings
settings = Settings(cache={{"enabled": False}})
{code}
{STATE}
"""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize("loaded", LOADED.values(), ids=LOADED)
def test_loading_a_classifier_leaves_the_garbage_collector_alone(loaded: str) -> None:
    assert output_of(loaded) == "False True\n"


def test_a_command_makes_the_garbage_collector_rare_in_a_step_of_its_own() -> None:
    assert output_of("collect_garbage_rarely()") == "True False\n"


def test_a_model_that_is_not_the_wanted_one_is_refused() -> None:
    digest = engine.load_model(BUILT_IN_MODEL).digest
    assert load_model(Settings(model_digest=digest)).digest == digest
    for changed in (
        Settings(model_digest="0" * 16),
        Settings(thresholds={"joy": 0.5}, model_digest=digest),
    ):
        with pytest.raises(ConfigurationError, match="and model_digest asks for another"):
            load_model(changed)
