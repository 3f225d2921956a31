"""How a tool says that it has no result."""

from __future__ import annotations


class ToolFailure(Exception):
    """A tool has no result; the message says why, for the person who runs the chat. The model is told `No result.`"""
