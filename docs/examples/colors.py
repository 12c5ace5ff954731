"""Asks a language model for a color, and judges the text of its answer by a function."""

from staleness_grpo.tasks.text import PromptedTask, TextProblem

PROBLEMS = {
    "Name a color of the sky.": ("blue", "gray", "red"),
    "Name a color of grass.": ("green", "brown"),
    "Name a color of snow.": ("white",),
}


def verify(response: str, colors: tuple[str, ...]) -> float:
    """Returns 1 for a right color, 0.1 for any short answer, and 0 otherwise."""
    if any(color in response.lower() for color in colors):
        return 1.0
    return 0.1 if len(response) < 40 else 0.0


class Colors(PromptedTask):
    """The tokenizer is that of policy.checkpoint. The other arguments are fields of the config."""

    def __init__(self, tokenizer, *, max_response_length: int = 16, repeat: int = 1):
        problems = [TextProblem(text, colors) for text, colors in PROBLEMS.items()] * repeat
        super().__init__(tokenizer, problems, verify, max_response_length=max_response_length)
