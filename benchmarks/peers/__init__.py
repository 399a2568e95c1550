"""The parts of `benchmarks/peers.py`, and one small script a peer, each written as a user of that tool would write it."""
