"""Fitting the rest: linear probes, training by batches, autotuning, the freeze check."""
