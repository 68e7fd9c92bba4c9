"""The base of pydantic models: manifests, checkpoints, receipts and settings.

People and other versions of the worker write what these are read from. So a field with an unknown
name is an error: taken silently, a setting with a typing mistake would have no effect.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

# A number from 0 to 1; neither NaN nor an infinity is one.
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model that refuses unknown fields, cannot be changed, and keeps its input out of errors.

    By default, pydantic's errors quote the value that is wrong, which may be a secret or a text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
