"""Makes text tasks: problems from a file, and problems from reasoning-gym."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from staleness_grpo.errors import FieldError, require
from staleness_grpo.policy.huggingface.tokenizer import Tokenizer
from staleness_grpo.tasks import components, numbers, verifiers
from staleness_grpo.tasks.problems import Columns, TextProblem, read_problems
from staleness_grpo.tasks.prompted import PLACEHOLDER, REFUSE, PromptedTask


def jsonl_task(
    tokenizer: Tokenizer,
    *,
    path: str,
    verifier: str,
    max_response_length: int,
    prompt: str = PLACEHOLDER,
    chat: bool = False,
    system: str = "",
    template_arguments: Mapping[str, Any] | None = None,
    max_prompt_length: int | None = None,
    too_long: str = REFUSE,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    answer_after: str | None = None,
    reward_weights: Mapping[str, float] | None = None,
    format_pattern: str | None = None,
    length_range: Sequence[int] | None = None,
    length_unit: str | None = None,
) -> PromptedTask:
    """Makes a task with the problems of a JSON-lines file or a Parquet file.

    A line or row has the fields "prompt" and "answer", or, as in GSM8K, "question" and "answer".
    From the answer to a question, only the text after the last '####' is kept. `problems` has the
    details.

    Args:
      tokenizer: the checkpoint's tokenizer.
      path: the path of the file.
      verifier: a key of `verifiers.MATHEMATICS`.
      max_response_length, prompt, chat, system: see PromptedTask.
      template_arguments, max_prompt_length, too_long: see PromptedTask. Arguments that are None are
        left out.
      prompt_column: the column of the prompts, in place of "prompt" or "question".
      answer_column: the column of the answers, which are kept whole, in place of "answer".
      answer_after, reward_weights: see `components.make_verifier`. Weights that are None are left
        out.
      format_pattern, length_range, length_unit: see `components.make_verifier`.

    Raises:
      FieldError: a field or a line of the file cannot be used, or a package is not installed.
    """
    weights = _given(reward_weights, "reward_weights")
    verify = components.make_verifier(
        verifier,
        answer_after=answer_after,
        reward_weights=weights,
        format_pattern=format_pattern,
        length_range=length_range,
        length_unit=length_unit,
    )
    owners = {verifier: "verifier"} | {name: f"reward_weights.{name}" for name in weights}
    if "math_verify" in owners:
        _require_package("math_verify", owners["math_verify"], "math-verify", "or choose number")
    problems = read_problems(path, Columns(prompt_column, answer_column))
    if "number" in owners:
        for problem in problems:
            if numbers.whole_number(problem.reference) is None:
                reason = f"the answer {problem.reference[:40]!r} on {problem.place} of path"
                hint = "choose exact, which compares text, or math_verify, which reads formulas"
                message = f"{reason} is not a number alone: {hint}"
                raise FieldError(owners["number"], message, weights.get("number", verifier))
    return PromptedTask(
        tokenizer,
        problems,
        verify,
        max_response_length=max_response_length,
        prompt=prompt,
        chat=chat,
        system=system,
        template_arguments=_given(template_arguments, "template_arguments"),
        max_prompt_length=max_prompt_length,
        too_long=too_long,
    )


def _given(section: Any, field: str) -> dict[str, Any]:
    """Returns the entries of a section of a config, or of a dict, that are not None.

    Raises:
      FieldError: the value is neither, nor None.
    """
    entries = {} if section is None else section
    if hasattr(entries, "to_dict"):
        entries = entries.to_dict()
    require(isinstance(entries, Mapping), field, "give a dict, such as dict(NAME=VALUE)", section)
    return {name: value for name, value in entries.items() if value is not None}


def reasoning_gym_task(
    tokenizer: Tokenizer,
    *,
    dataset: str,
    size: int,
    seed: int,
    max_response_length: int,
    options: Mapping[str, Any] | None = None,
    prompt: str = PLACEHOLDER,
    chat: bool = False,
    system: str = "",
) -> PromptedTask:
    """Makes a task with problems that the library reasoning-gym generates and judges.

    Args:
      tokenizer: the checkpoint's tokenizer.
      dataset: the name of a reasoning-gym dataset, such as 'chain_sum'.
      size: the number of problems to generate.
      seed: the seed from which the dataset generates its problems.
      options: other settings of the dataset, such as its difficulty. Settings that are not given
        have the library's defaults.
      max_response_length, prompt, chat, system: see PromptedTask.

    Raises:
      FieldError: a field cannot be used, or the package is not installed.
    """
    _require_package("reasoning_gym", "name", "reasoning-gym", "or give another task")
    import reasoning_gym

    known = dataset in reasoning_gym.factory.DATASETS
    require(known, "dataset", "reasoning-gym has no such dataset: choose one from its gallery")
    require(size >= 1, "size", "give a number >= 1")
    options = {} if options is None else options
    hint = "give a dict of the dataset's other settings; size and seed have their own fields"
    require(isinstance(options, Mapping) and not {"size", "seed"} & set(options), "options", hint)
    settings = {"size": size, "seed": seed, **options}
    try:
        entries = reasoning_gym.create_dataset(dataset, **settings)
        problems = [TextProblem(entries[i]["question"], entries[i]) for i in range(size)]
    except (TypeError, ValueError, AssertionError) as error:
        hint = f"reasoning-gym does not accept these options ({error}): correct or remove them"
        raise FieldError("options", hint) from error
    return PromptedTask(
        tokenizer,
        problems,
        verifiers.ReasoningGym(dataset, settings),
        max_response_length=max_response_length,
        prompt=prompt,
        chat=chat,
        system=system,
    )


def _require_package(module: str, field: str, package: str, alternative: str) -> None:
    """Raises FieldError if the value of a field needs a module that is not installed."""
    installed = importlib.util.find_spec(module) is not None
    require(installed, field, f"pip install {package} (of the extra tasks), {alternative}")
