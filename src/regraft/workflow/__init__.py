"""The whole story: split, cache, train, score, write; and many such stories side by side.

Refuses to read the test part except where it is opened on purpose, and records that it was.
"""

from regraft.workflow.story import Settings, fit

__all__ = ["Settings", "fit"]
