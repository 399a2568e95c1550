"""Finished runs side by side, on the same images or not at all: the leaderboard, its files and its pictures.

Refuses to load torch.
"""

from regraft.report.board import flat, leaderboard, write

__all__ = ["flat", "leaderboard", "write"]
