"""Where the random inputs of the family views were before they became part of the package."""

from steelyard.conform.inputs import *  # noqa: F403
