"""What the models share that are read from files: manifests, checkpoints, receipts, settings.

Other people and other versions of the worker write those files, so that a field with an unknown
name is an error and never a typing mistake that has no effect.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

# Neither NaN nor an infinity is one.
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model that refuses unknown fields, cannot be changed, and keeps its input out of errors.

    pydantic's errors quote the value that was wrong, which may be a secret or a text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
