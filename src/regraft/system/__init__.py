"""This computer: files, locks, disk errors, hardware, progress, timing."""
