"""compose.yaml and Dockerfile, as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_bytes())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGE = "chat-label-worker"
# Those that run the worker's image.
OURS = {name: service for name, service in SERVICES.items() if service["image"] == IMAGE}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# ${NAME:-default}, in text that YAML has read.
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def with_defaults(text: str) -> str:
    """Return a text as compose reads it where no variable is set."""
    return VARIABLE.sub(lambda match: match[2] or "", text)


def instruction(name: str) -> Any:
    """Return the words of an instruction of the Dockerfile in exec form."""
    (words,) = re.findall(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(words)


def image_environment() -> dict[str, str]:
    """Return the worker's settings that the image brings."""
    return dict(re.findall(r"(WORKER_\w+)=(\S+)", DOCKERFILE))
