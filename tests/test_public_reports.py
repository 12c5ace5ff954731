"""What went wrong in other trainers and in the libraries around them does not go wrong here.

Each test names the public report that it was made from, as repository#number.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import (
    SurrogateConfig,
    corrected_surrogate,
    ratio_diagnostics,
)
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.huggingface import tokenizer
from staleness_grpo.policy.logprobs import chunked_logprobs, log_distribution, vocabulary_chunks
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime.distributed import find
from staleness_grpo.runtime.preemption import Preemption
from staleness_grpo.tasks import text, verifiers
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.learner import learning_rate_schedule, make_optimizer
from staleness_grpo.training.loop import train
from staleness_grpo.training.loss import surrogate_loss
from staleness_grpo.types import Prompts
from tests.helpers import byte_tokenizer
from tests.helpers.byte_model import problems_file
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A tokenizer of bytes; tokens 1 and 5 end a response."""
    folder = tmp_path_factory.mktemp("letters")
    byte_tokenizer.write(folder)
    return tokenizer.load(folder)


def prompted(words, **options):
    problems = [text.TextProblem("1+1=", "2")]
    return text.PromptedTask(words, problems, verifiers.number, max_response_length=4, **options)


def texts_of(task, tokens, length):
    """Returns the text of one response of which the first `length` tokens count."""
    mask = np.arange(len(tokens)) < length
    return task.samples(np.array([0]), np.array([[tokens]]), mask[None, None])[0]


# Data.


def test_a_file_from_windows_has_the_same_problems(tmp_path):
    """huggingface/datasets#8241: a byte-order mark before the first line changed the data."""
    plain = problems_file(tmp_path, *({"prompt": word, "answer": word} for word in "äb"))
    expected = text.read_problems(plain)
    content = plain.read_text().replace("\n", "\r\n\r\n")
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert text.read_problems(tmp_path / "windows.jsonl") == expected
    assert [problem.prompt for problem in expected] == ["ä", "b"]


@pytest.mark.parametrize("prompt", [["hi"], [], {"text": "hi"}, 7])
def test_a_prompt_that_is_neither_text_nor_messages_is_refused_by_its_line(prompt, tmp_path):
    """unslothai/unsloth#337: lists of messages gave a parser's error that named no fix.

    Lists of messages are read here. Other values are refused.
    """
    good = {"prompt": "hi", "answer": "2"}
    path = problems_file(tmp_path, good, good | {"prompt": prompt})
    with pytest.raises(text.FieldError, match="line 2 has no text as its prompt: write"):
        text.read_problems(path)


@pytest.mark.parametrize(
    "response, reward",
    [
        ("2+40=42\n#### 42\n" + "That is consistent with 7. " * 30, 1),  # verl-project/verl#7274
        ("The total is 42 clips, altogether.", 1),  # jundot/omlx#3484
        ("The answer is 42, in total, as it should be.", 1),  # stanford-crfm/helm#4337
        ("#### +42", 1),  # allenai/open-instruct#1530
        ("#### -42", 0),
        ("The price is $42.00.", 1),  # EleutherAI/lm-evaluation-harness#3254
        ("[8.124,42]", 1),  # databricks/officeqa#23: the comma is not a thousands separator
        ("1,042", 0),
    ],
)
def test_a_right_number_is_found_and_a_wrong_one_is_not(response, reward):
    """Several reports, named beside the cases: right answers got no reward, or wrong ones did."""
    assert verifiers.number(response, "42") == reward


# Tokens.


def test_the_end_token_counts_where_it_is_the_pad_token_too(tmp_path):
    """huggingface/trl#4970: a mask made from token values left the end of responses out.

    huggingface/trl#7039: only one of a model's end tokens ended a response. Here there are two.
    """
    byte_tokenizer.write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    task = prompted(tokenizer.load(tmp_path))
    assert task.pad_token == 1 and 1 in task.end_token
    policy = Policy(TransformerConfig(8, 1, 8, 1, 1, 8, 8))
    prompts = Prompts(np.full((2, 1), 1, np.int32), np.ones((2, 1), bool), np.arange(2))
    responses = sample(
        policy,
        jax.jit(policy.init)(jax.random.key(0)),
        prompts,
        jax.random.key(0),
        jnp.zeros(2, jnp.int32),
        jnp.arange(2),
        1.0,
        group_size=16,
        max_length=6,
        end_token=task.end_token,
        pad_token=task.pad_token,
    )
    rows = responses.tokens_NxGxR.reshape(-1, 6), responses.mask_NxGxR.reshape(-1, 6)
    lengths = []
    for tokens, mask in zip(*map(np.asarray, rows), strict=True):
        ends = np.flatnonzero(np.isin(tokens, task.end_token))
        lengths.append(ends[0] + 1 if len(ends) else 6)  # the first end token counts
        assert mask.tolist() == [position < lengths[-1] for position in range(6)]
    assert min(lengths) < 6


def test_tokens_that_only_the_model_knows_have_no_text(letters):
    """NVIDIA-NeMo/RL#237: sampled tokens of the padded vocabulary ended the training."""
    task = prompted(letters)
    digit = letters.encode("2", add_special_tokens=False)
    assert texts_of(task, [task.vocab_size, *digit, task.vocab_size + 4], 3) == ["2"]


def test_a_response_that_is_cut_inside_a_character_has_a_text(letters):
    """timtoole02/Camelid#288: a limit of tokens inside a character made decoding fail."""
    cut = letters.encode("2 日", add_special_tokens=False)[:-1]
    assert texts_of(prompted(letters), cut, len(cut)) == ["2 \N{REPLACEMENT CHARACTER}"]


def test_a_rendered_chat_has_one_first_token(tmp_path):
    """huggingface/open-r1#462: the tokenizer added a second one to that of the template."""
    byte_tokenizer.write(tmp_path, "{{ bos_token }}{{ messages[0]['content'] }}:")
    task = prompted(tokenizer.load(tmp_path), chat=True)
    assert task.prompts(np.array([0])).tokens_NxP[0].tolist().count(0) == 1


# Groups and numbers.


def test_the_same_prompt_in_two_slots_is_two_groups():
    """NVIDIA-NeMo/RL#3882: groups with equal prompts were judged as one group."""
    run = build_run(tiny_config(**{"task.num_prompts": 1, "num_prompts": 4}))
    ((_, _, pending),) = run.generator.generate(run.state.params, 0, np.zeros(4, int), np.arange(4))
    rollout = pending.result()
    # Four groups, one after the other better: one group of all would see large differences.
    rewards = np.arange(4, dtype=np.float32)[:, None] + np.array([0, 0, 0, 0.5], np.float32)
    rollout = dataclasses.replace(rollout, rewards_NxG=rewards)
    loss = surrogate_loss(run.programs.policy, SurrogateConfig(), 1.0)
    gradient_of_loss = jax.jit(jax.grad(loss, has_aux=True))
    params = run.state.params
    whole = gradient_of_loss(params, rollout)[0]
    parts = [
        gradient_of_loss(params, jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], rollout))[0]
        for n in range(4)
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole, mean)


def test_one_reward_among_equal_ones_has_no_huge_advantage():
    """NVIDIA-NeMo/RL#4158: rounding made the spread of seven equal rewards 5e-4 instead of 0."""
    rewards = jnp.array([[0.0] + [0.95] * 7, [0.35] * 7 + [0.95], [0.1] * 8], jnp.float32)
    advantages = group_advantages(rewards, normalize_std=True, std_epsilon=1e-4)
    np.testing.assert_allclose(advantages[0, 0], -math.sqrt(7), rtol=1e-3)
    np.testing.assert_allclose(advantages[1, 7], math.sqrt(7), rtol=1e-3)
    assert not np.any(advantages[2])


def test_extreme_ratios_leave_loss_and_gradient_finite():
    """THUDM/slime#2198 and OpenRLHF/OpenRLHF#1293: exp of a log ratio was inf, its gradient NaN."""
    log_ratio = jnp.array([[0.0, 30, -30, 0], [100, -100, 0, 7], [800, 0, 0, 7], [-800, -1, 0, 7]])
    log_ratio = jnp.stack([log_ratio, log_ratio, log_ratio])
    advantages = jnp.stack([jnp.ones(4), -jnp.ones(4), jnp.zeros(4)])
    mask = jnp.ones(log_ratio.shape, bool).at[:, 1:, 3].set(False)
    behavior = jnp.minimum(-1.0, -log_ratio - 1)  # log-probabilities are negative

    def check(policy):
        """Returns the loss and the gradient of every correction, by its name."""
        results = {}
        for name, correction in registry.CORRECTIONS.items():
            normalization = correction.length_normalization or "response"
            has_std = correction.normalize_std in (None, True)
            config = SurrogateConfig(length_normalization=normalization, normalize_std=has_std)
            results[name] = jax.value_and_grad(
                lambda policy, normalization=normalization, config=config, name=name: (
                    corrected_surrogate(
                        policy,
                        behavior,
                        policy,
                        advantages,
                        mask,
                        normalization,
                        registry.bind(name, config, {}),
                    )[0]
                )
            )(policy)
        return results

    for name, (value, gradient) in jax.jit(check)(behavior + log_ratio).items():
        assert np.isfinite(value) and np.isfinite(gradient).all(), name


@pytest.mark.parametrize("temperature", [1.0, 1e-3])
def test_entropy_of_a_certain_policy_is_zero(temperature):
    """huggingface/trl#7221: it was NaN if a probability was 0.

    vllm-project/vllm#890: at a low temperature the probabilities were NaN.
    """
    hidden, head = jnp.eye(2), 100 * jnp.array([[3.0, -3], [-3, 2], [1, -3], [0, 0]])
    logprobs = log_distribution(hidden @ head.T, temperature)
    assert np.any(np.exp(logprobs) == 0)
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    np.testing.assert_allclose(entropy, 0, atol=1e-6)
    chosen, entropy = chunked_logprobs(
        hidden, vocabulary_chunks(head, 2), jnp.array([0, 1]), temperature
    )
    # Logits of 3e5 are rounded to 0.03 in float32.
    np.testing.assert_allclose([chosen, entropy], np.zeros((2, 2)), atol=0.05)


def test_approx_kl_is_the_divergence_of_the_learner_from_the_sampler():
    """hpcaitech/ColossalAI#3696: the two distributions were in the wrong order."""
    behavior, learner = np.array([0.75, 0.75, 0.75, 0.25]), np.array([0.5, 0.5, 0.5, 0.5])
    ones = jnp.ones((1, 4))
    diagnostics = ratio_diagnostics(
        jnp.log(learner / behavior)[None], ones[:, :1], ones > 0, ones < 0
    )
    forward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(behavior, learner)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    np.testing.assert_allclose(diagnostics["approx_kl"], forward, rtol=1e-5)
    assert abs(forward - backward) > 0.01


# Steps and going on.


def test_the_first_step_of_a_warm_up_learns():
    """verl-project/verl#3674: its learning rate was 0."""
    config = default_config().optimizer
    config.update(dict(name="sgd", learning_rate=0.4, warmup_steps=4))
    optimizer, params = make_optimizer(config, 6), jnp.zeros(1)
    state, taken = optimizer.init(params), []
    for _ in range(6):
        update, state = optimizer.update(jnp.ones(1), state, params)
        taken.append(-float(update[0]))
    np.testing.assert_allclose(taken, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)
    recorded = [float(learning_rate_schedule(config, 6)(step)) for step in range(6)]
    np.testing.assert_allclose(recorded, taken, rtol=1e-6)


class StopAt(Preemption):
    """Asks a run to stop before a step, like a scheduler that takes the machine away."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def requested(self, step):
        return step >= self.step


def test_a_run_in_three_parts_is_the_run_in_one(tmp_path):
    """Four reports of runs that went on wrongly.

    PrimeIntellect-ai/prime-rl#1095: the learning rate's schedule was not restored.
    allenai/open-instruct#1523: prompts came a second time. NVIDIA-NeMo/RL#3599: prompts in flight
    were lost. verl-project/verl#6232: a run that was done took one more step at every start.
    """
    config = tiny_config(**{"lag.max_lag": 2, "optimizer.warmup_steps": 5, "metrics.lags": True})

    def part(stop, folder):
        run, checkpoints = build_run(config), Checkpoints(folder, config)
        checkpoints.restore(run, lambda reason, hint: AssertionError(reason))
        return [
            {name: value for name, value in record.items() if name != "time_step"}
            for record in train(run, checkpoints, StopAt(stop))
        ]

    whole = part(6, tmp_path / "whole")
    parts = [part(stop, tmp_path / "parts") for stop in (3, 6, 6)]
    assert list(map(len, parts)) == [3, 3, 0]
    for record, expected in zip(itertools.chain(*parts), whole, strict=True):
        np.testing.assert_equal(record, expected)
    assert [round(record["learning_rate"], 6) for record in whole][:3] == [0.004, 0.008, 0.012]


# Clusters.


@pytest.mark.parametrize("coordinator", ["host", "host:", "host:http", "host:80a"])
def test_a_coordinator_without_a_port_is_refused_before_anything_waits(coordinator):
    """jax-ml/jax#35905: processes that cannot reach each other wait until a time limit."""
    flags = {"coordinator": coordinator, "num_processes": 2, "process_id": 0}
    with pytest.raises(ValueError, match="--coordinator=host.*: give HOST:PORT of process 0"):
        find(flags, {})
