"""Numbers from logits and features: scores, calibration, paired comparison, transferability."""
