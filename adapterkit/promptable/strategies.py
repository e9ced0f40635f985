"""What a structure is asked for by, where a reference mask stands in for an expert."""

from typing import Literal

PromptStrategy = Literal[
    "1", "2-random", "2-entropy", "2-max-distance", "3", "5", "box", "class", "class+1", "mixed"
]
"""See `points.choose_prompts`."""
