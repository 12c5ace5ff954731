"""Tasks of text: what is asked, what is judged, what is refused; and a training whose rewards come from workers."""

import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import train as experiment
from staleness_grpo import config as config_lib
from staleness_grpo import train, validation
from staleness_grpo.checkpoint import Checkpoints
from staleness_grpo.config import ConfigError, FlagError
from staleness_grpo.metrics import plain
from staleness_grpo.rewards import FAILED, JUDGED
from staleness_grpo.tasks import TaskError, verifiers
from staleness_grpo.tasks.base import TextTask

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from staleness_grpo.policy import huggingface, tokenizer  # noqa: E402
from staleness_grpo.policy.transformer import Policy, TransformerConfig  # noqa: E402
from staleness_grpo.tasks import text  # noqa: E402
from tests import byte_tokenizer  # noqa: E402

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a random one-layer policy on bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    shape = dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    policy = Policy(TransformerConfig(vocab_size=264, **shape))
    huggingface.save(folder, policy, policy.init(jax.random.key(0)))
    byte_tokenizer.write(folder, TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def letters(folder):
    return tokenizer.load(folder)


def problems_file(tmp_path, *lines):
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def jsonl(letters, path, **fields):
    return text.jsonl_task(letters, **(dict(path=str(path), verifier="number", max_response_length=8) | fields))


def test_prompts_are_the_problems_padded_at_the_left(letters, tmp_path):
    path = problems_file(
        tmp_path, {"prompt": "1+1?", "answer": " 2 "}, "", {"question": "2+20?", "answer": "x\n#### 22"}
    )
    task = jsonl(letters, path, prompt="Q: {prompt} {x}")
    assert isinstance(task, TextTask)
    assert (task.num_prompts, task.end_token, task.pad_token, task.vocab_size) == (2, (1, 5), 2, 259)
    assert task.prompt_length == len("Q: 2+20? {x}") + 1
    prompts = task.prompts(np.array([1, 0, 0]))
    assert [task.decode(tokens) for tokens in prompts.tokens_NxP] == ["Q: 2+20? {x}", "Q: 1+1? {x}", "Q: 1+1? {x}"]
    np.testing.assert_array_equal(prompts.mask_NxP.sum(axis=1), [13, 12, 12])
    np.testing.assert_array_equal(prompts.tokens_NxP[:, 0], [0, 2, 2])  # the first token of a text, or padding
    np.testing.assert_array_equal(prompts.index_N, [1, 0, 0])
    tokens = np.full((2, 2, 8), 2)
    for n, g, answer in ((0, 0, "22"), (0, 1, "2"), (1, 0, "= 2")):
        written = letters.encode(answer, add_special_tokens=False)
        tokens[n, g, : len(written) + 1] = [*written, 1]  # with its stop token
    texts, references = task.samples(np.array([1, 0]), tokens, tokens != 2)
    assert texts == ["22", "2", "= 2", ""]
    assert references == ["22", "22", "2", "2"]
    assert [task.verify(*pair) for pair in zip(texts, references, strict=True)] == [1.0, 0.0, 1.0, 0.0]


def test_the_stop_token_is_no_part_of_the_text_whatever_it_is(letters, tmp_path):
    """5 is a letter here, as </s> is in tokenizers that do not mark it as special."""
    task = jsonl(letters, problems_file(tmp_path, {"prompt": "a", "answer": "2"}), verifier="exact")
    tokens = np.array([[[*letters.encode("yes", add_special_tokens=False), 5, 2]]])
    assert letters.decode([5]) and task.samples([0], tokens, tokens != 2)[0] == ["yes"]


def test_a_line_may_hold_any_character_of_json(tmp_path):
    line = json.dumps({"prompt": "a\u2028b", "answer": "1"}, ensure_ascii=False)
    assert text.read_problems(problems_file(tmp_path, "\ufeff" + line + "\r"))[0].prompt == "a\u2028b"


def test_what_counts_of_a_gsm8k_answer_follows_its_last_marker(tmp_path):
    path = problems_file(tmp_path, {"question": "a", "answer": "#### 1, no:\n#### 2"})
    assert text.read_problems(path) == [text.Problem("a", "2")]


def test_problems_that_cannot_be_asked_or_judged_are_refused(letters, tmp_path):
    plain_letters = dataclasses.replace(letters, tokenizer=tokenizers.Tokenizer(letters.tokenizer.model))
    for problems, said in (([], "there are none"), ([text.Problem(p, "1") for p in ("a", "")], "problem 2 has no tok")):
        with pytest.raises(TaskError, match=said):
            text.PromptedTask(plain_letters, problems, verifiers.exact, max_response_length=8)
    with pytest.raises(TaskError, match="'yes' in task.path has no number") as error:
        jsonl(letters, problems_file(tmp_path, {"prompt": "a", "answer": "yes"}))
    assert error.value.field == "verifier"


def test_stop_and_pad_tokens_outside_the_vocabulary_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    for fields in (dict(eos_token_id=[1, 264]), dict(eos_token_id=1, pad_token_id=264), dict(eos_token_id=-1)):
        (tmp_path / "copy" / "generation_config.json").write_text(json.dumps(fields))
        with pytest.raises(ConfigError, match=r"--config.policy.checkpoint=.*not all among its 264"):
            validation.validate(text_config(tmp_path / "copy"), 1)


def test_chats_are_written_in_the_checkpoints_template(letters, tmp_path):
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})

    def asked(**fields):
        return jsonl(letters, path, **fields).decode(jsonl(letters, path, **fields).prompts([0]).tokens_NxP[0])

    assert asked(chat=True) == "[user]1+1?[assistant]"
    assert asked(chat=True, system="Add.") == "[system]Add.[user]1+1?[assistant]"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1 is no JSON"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], "line 2 has no text answer"),
        ([{"answer": "b"}], "line 1 has no text question"),
        ([{"prompt": "a", "answer": 3}], "line 1 has no text answer"),
        ([[1]], "line 1 has no text question"),
        ([{"question": "a", "answer": "b"}], "line 1 has a question whose answer has nothing after '####'"),
        ([{"question": "a", "answer": "b #### "}], "line 1 has a question whose answer has nothing after '####'"),
        ([{"prompt": " ", "answer": "b"}], "line 1 has no text prompt"),
        ([{"prompt": "a", "answer": "\n"}], "line 1 has no text answer"),
        ([{"prompt": "\ud800", "answer": "b"}], "line 1 has half a surrogate pair.* in its prompt"),
        (["[" * 100_000 + "]" * 100_000], "line 1 is no JSON"),
        ([""], "the file has no problems"),
    ],
)
def test_lines_that_are_no_problem_are_refused_by_number(tmp_path, lines, said):
    with pytest.raises(TaskError, match=said):
        text.read_problems(problems_file(tmp_path, *lines))


def text_config(folder, **task):
    config = config_lib.default()
    config.update(dict(steps=8, num_prompts=4, group_size=4, eval_every=4))
    config.warm_start.steps = 0
    config.policy.checkpoint = str(folder)
    config.task = ConfigDict(dict(name="stories", rule="dialogue", max_response_length=6) | task)
    return config


@pytest.mark.parametrize(
    ("task", "flag"),
    [
        (dict(rule="rhyme"), "task.rule"),
        (dict(max_response_length=0), "task.max_response_length"),
        (dict(name="jsonl", path="absent.jsonl", verifier="number"), "task.path"),
        (dict(name="jsonl", path=__file__, verifier="number"), "task.path"),
        (dict(name="jsonl", path="", verifier="vote"), "task.verifier"),
        (dict(name="poetry"), "task.name"),
    ],
)
def test_what_cannot_be_used_is_refused_by_flag(folder, task, flag):
    config = text_config(folder)
    if task.get("name") == "jsonl":
        del config.task.rule
    config.task.update(task)
    with pytest.raises(ConfigError, match=f"--config.{flag}="):
        validation.validate(config, 1)


def test_a_text_task_needs_a_tokenizer_and_a_system_message_a_chat(letters, folder, tmp_path):
    config = text_config(folder)
    config.policy.checkpoint = None
    with pytest.raises(ConfigError, match="--config.task.name=stories: the task stories needs a tokenizer"):
        validation.validate(config, 1)
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})
    with pytest.raises(TaskError, match="a system message needs chat=True"):
        jsonl(letters, path, system="Add.")
    with pytest.raises(TaskError, match="write {prompt} where"):
        jsonl(letters, path, prompt="Q:")


def test_reasoning_gym_problems_are_the_librarys(letters):
    library = pytest.importorskip("reasoning_gym", reason="the extra tasks is not installed")
    options = dict(min_terms=2, max_terms=2)
    task = text.reasoning_gym_task(letters, dataset="chain_sum", size=3, seed=5, options=options, max_response_length=8)
    entries = library.create_dataset("chain_sum", size=3, seed=5, **options)
    asked = [task.decode(tokens) for tokens in task.prompts(np.arange(3)).tokens_NxP]
    assert asked == [entry["question"] for entry in entries]
    _, references = task.samples(np.arange(3), np.zeros((3, 1, 8), int), np.zeros((3, 1, 8), bool))
    assert [task.verify(entry["answer"], reference) for entry, reference in zip(entries, references, strict=True)] == [
        1.0, 1.0, 1.0,
    ]  # fmt: skip
    wrong = [("chain_summ", {}, "dataset")]
    wrong += [("chain_sum", options, "options") for options in ({"min_terms": 0}, {"size": 9}, {"seed": 1}, "abc")]
    for dataset, options, field in wrong:
        with pytest.raises(TaskError) as error:
            text.reasoning_gym_task(letters, dataset=dataset, options=options, size=3, seed=5, max_response_length=8)
        assert error.value.field == field


def test_a_run_goes_on_with_its_own_problems_alone(folder, tmp_path, monkeypatch):
    """The same flags may name another file or tokenizer by then."""
    shutil.copytree(folder, tmp_path / "copy")
    lines = [{"prompt": prompt, "answer": "2"} for prompt in ("1+1?", "4/2?")]
    config = text_config(tmp_path / "copy")
    config.task = ConfigDict(dict(name="jsonl", verifier="number", max_response_length=6))
    config.task.path = str(problems_file(tmp_path, *lines))

    def broken_off(*args):
        raise StopIteration

    monkeypatch.setattr(experiment, "resume", broken_off)
    for _ in range(2):
        with pytest.raises(StopIteration):
            experiment.main(config, tmp_path / "out")
    record = (tmp_path / "out" / "environment.json").read_bytes()
    for changed in ([lines[1], lines[0]], lines[:1], [lines[0], lines[1] | {"answer": "3"}]):
        problems_file(tmp_path, *changed)
        with pytest.raises(
            ConfigError, match="^--config.task.path=.*jsonl: .*are not those that .*out was started with"
        ):
            experiment.main(config, tmp_path / "out")
    problems_file(tmp_path, *lines)
    (tmp_path / "copy" / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(ConfigError, match="or their tokens"):
        experiment.main(config, tmp_path / "out")
    assert (tmp_path / "out" / "environment.json").read_bytes() == record
    (tmp_path / "out" / "environment.json").write_text("{")
    with pytest.raises(FlagError, match="^--workdir=.*environment.json cannot be read"):
        experiment.main(config, tmp_path / "out")


def test_a_fingerprint_is_that_of_every_process(letters):
    """Addresses, and the order of sets of words, are not."""
    references = [{"words": {"a", "b"}, "made_by": object(), (1, 2): 3, "answer": answer} for answer in "xxy"]
    tasks = [
        text.PromptedTask(letters, [text.Problem("a", reference)], verifiers.exact, max_response_length=8)
        for reference in references
    ]
    assert tasks[0].fingerprint == tasks[1].fingerprint != tasks[2].fingerprint


def even_length(response: str, reference: None) -> float:
    """A verifier with opinions on random bytes, that some of them break."""
    if "e" in response:
        raise ValueError("an e")
    return float(len(response) % 2 == 0)


def run_of(folder, monkeypatch, **fields):
    """A training on random bytes judged by `even_length`."""
    monkeypatch.setitem(text.STORY_RULES, "dialogue", (even_length, None))
    config = text_config(folder)
    config.update_from_flattened_dict(fields)
    return train.build(config), config


def test_a_training_counts_the_rewards_that_failed(folder, monkeypatch):
    run, config = run_of(folder, monkeypatch, **{"lag.max_lag": 2, "metrics.paired_every": 5})
    seen, update = [], run.update
    run.update = lambda state, batch: (seen.append(jax.device_get(batch)), update(state, batch))[1]
    try:
        records = [json.loads(json.dumps(plain(record))) for record in train.train(run, config)]
    finally:
        run.close()
    total = 0
    for record, batch in zip(records, seen, strict=True):
        texts, _ = run.generator.task.samples(
            batch.prompts.index_N, batch.responses.tokens_NxGxR, batch.responses.mask_NxGxR
        )
        failed = np.array(["e" in found for found in texts]).reshape(4, 4)
        np.testing.assert_array_equal(batch.reward_outcome_NxG, np.where(failed, FAILED, JUDGED))
        even = np.array([len(found) % 2 == 0 for found in texts]).reshape(4, 4)
        np.testing.assert_array_equal(batch.rewards_NxG, (even & ~failed).astype(np.float32))
        assert (record["reward_errors"], record["reward_timeouts"]) == (failed.sum(), 0)
        total += record["reward_errors"]
    assert total > 0
    # At step 0 nothing is stale, so that the fresh answers it is compared with are the same ones.
    assert records[0]["paired_reward_failures"] == records[0]["reward_errors"]
    assert ["paired_reward_failures" in record for record in records] == [step % 5 == 0 for step in range(8)]
    assert "eval_reward_failures" in records[4] and records[4]["lag_max"] == 2


class Held:
    """A Judging whose rewards come when they are let go."""

    def __init__(self, judging, gate):
        self.judging, self.gate, self.waited_for = judging, gate, False

    def done(self):
        return self.gate.is_set() and self.judging.done()

    def result(self):
        self.waited_for = True
        return self.judging.result()


def test_the_loop_waits_for_no_reward_before_its_step_comes(folder, monkeypatch):
    """With lag 3, what is generated at step t is waited for at step t + 3 and not earlier."""
    run, config = run_of(folder, monkeypatch, **{"lag.max_lag": 3, "eval_every": 0})
    gate, held, pool = threading.Event(), [], run.generator.reward_pool
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *samples: held.append(Held(submit(*samples), gate)) or held[-1])
    waiting = []
    try:
        for _ in train.train(run, config):
            waiting.append([not judging.waited_for for judging in held])
    finally:
        run.close()
    # A record comes a step late: with that of step t, step t + 1 has been learned from, and t + 4 is generated.
    for step, found in enumerate(waiting[:-1]):
        assert found == [False] * (step + 2) + [True] * min(3, 6 - step)
    assert run.buffer.num_unread == 0 and not run.unjudged


def test_a_checkpoint_holds_the_rewards_that_were_on_their_way(folder, monkeypatch, tmp_path):
    """A run broken off and gone on with ends as one that was not, its counts of failures included."""
    fields = {"lag.max_lag": 3, "checkpoint.save_every": 4}
    run, config = run_of(folder, monkeypatch, **fields)
    try:
        whole = [plain(record) for record in train.train(run, config, Checkpoints(tmp_path / "a", config))]
    finally:
        run.close()
    first, _ = run_of(folder, monkeypatch, **fields)
    checkpoints = Checkpoints(tmp_path / "b", config)
    loop = train.train(first, config, checkpoints)
    try:
        for _ in range(5):  # the save before step 4 comes with the record of step 3
            next(loop)
        checkpoints.wait()
    finally:
        first.close()
    again, _ = run_of(folder, monkeypatch, **fields)
    again_checkpoints = Checkpoints(tmp_path / "b", config)
    again_checkpoints.restore(again, lambda reason, mend: AssertionError(f"{reason}: {mend}"))
    assert again.step == 4 and again.buffer.num_unread == 12
    try:
        rest = [plain(record) for record in train.train(again, config, again_checkpoints)]
    finally:
        again.close()
    for record in (*whole, *rest):
        del record["time_step"]
    assert rest == whole[4:]
    assert sum(record["reward_errors"] for record in rest) > 0


def test_verifiers_of_a_file_are_known_by_name():
    assert set(verifiers.MATHEMATICS) == {"exact", "number", "math_verify"}
