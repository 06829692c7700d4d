"""Models: loading and saving, packed attention, log-probabilities, the reference."""
