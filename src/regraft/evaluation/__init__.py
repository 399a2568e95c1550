"""Numbers from logits: scores with intervals, metrics by class, calibration, paired differences."""
