"""What the frozen part says of every image, computed once and kept.

Refuses to trust: an entry's name is a digest of everything that it depends on, and its bytes are checked when it is opened.
"""

from regraft.cache.features import Look, activations, name_of, pixels, run, size_of, together
from regraft.cache.store import Entry, bound, clear, evict, fits, home, listing

__all__ = [
    "Entry",
    "Look",
    "activations",
    "bound",
    "clear",
    "evict",
    "fits",
    "home",
    "listing",
    "name_of",
    "pixels",
    "run",
    "size_of",
    "together",
]
