"""One training loop for every method and phase, and what keeps it safe: checkpoints, signals, seeds."""
