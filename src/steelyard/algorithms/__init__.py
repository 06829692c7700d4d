"""Algorithms: pure functions from a family view to unreduced loss terms."""
