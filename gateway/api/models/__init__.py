"""What answers look like: the models that the OpenAPI document is made from, a module for each resource.

Tests hold the real answers to them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NothingMore(View):
    """The body of a call that takes no options. It may be left out."""
