"""What a structure is asked for by, where a reference mask stands in for an expert."""

from typing import Literal

PromptStrategy = Literal[
    "1",
    "2-random",
    "2-entropy",
    "2-max-distance",
    "2-uncertain",
    "2-disagreement",
    "2-prior",
    "3",
    "5",
    "box",
    "class",
    "class+1",
]
"""See `points.choose_prompts`."""

TrainingStrategy = PromptStrategy | Literal["mixed"]
"""In training also several in each step; see `training.prompting`."""

PROMPTS_IN_WORDS: dict[TrainingStrategy, str] = {
    "1": "1 click",
    "2-random": "2 random clicks",
    "2-entropy": "2 clicks, second by entropy",
    "2-max-distance": "2 clicks, second by max distance",
    "2-uncertain": "2 clicks, second by uncertainty",
    "2-disagreement": "2 clicks, second by disagreement",
    "2-prior": "2 clicks, second by class prior",
    "3": "3 clicks",
    "5": "5 clicks",
    "box": "box",
    "class": "class",
    "class+1": "class and 1 click",
    "mixed": "class, and click or box, and each corrected by clicks",
}
"""For tables and figures."""
