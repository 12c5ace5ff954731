"""Compares the tokenizer of a model folder with that of the library transformers."""

import json

import pytest

from staleness_grpo.policy.huggingface import tokenizer as tokenizer_lib
from staleness_grpo.policy.huggingface.config import ModelFolderError

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from tests.helpers import byte_tokenizer  # noqa: E402

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message['role'] == 'tool' %}\n{{ raise_exception('no tools') }}{% endif %}\n"
    "<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [{"role": "system", "content": "Add. "}, {"role": "user", "content": "1 + 1 = ?"}]


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with a tokenizer of single bytes, a chat template and two stop tokens."""
    byte_tokenizer.write(tmp_path, TEMPLATE)
    (tmp_path / "config.json").write_text(json.dumps(dict(eos_token_id=7, bos_token_id=0)))
    return tmp_path


def test_text_and_chats_are_those_of_transformers(folder):
    transformers = pytest.importorskip(
        "transformers", reason="the extra reference is not installed"
    )
    texts = json.loads((folder / "tokenizer_config.json").read_text())
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=texts["chat_template"],
    )
    ours = tokenizer_lib.load(folder)
    for text in ("Once upon a time", " two  spaces\nand é", "<s>x</s>"):
        tokens = ours.encode(text)
        assert tokens == theirs(text)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == tokens[1:]
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
        assert ours.decode(tokens, skip_special_tokens=False) == theirs.decode(tokens)
    rendered = ours.render_chat(CHAT)
    assert rendered == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s><system>Add.</s>\n<user>1 + 1 = ?</s>\n<assistant>"
    assert ours.encode_chat(CHAT) == theirs(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("splits", [False, True])
def test_special_tokens_of_a_text_are_split_where_the_folder_says_so(folder, splits):
    transformers = pytest.importorskip(
        "transformers", reason="the extra reference is not installed"
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_special_tokens": splits}))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        split_special_tokens=splits,
    )
    tokens = tokenizer_lib.load(folder).encode("<s>x</s>")
    assert tokens == theirs("<s>x</s>")["input_ids"] and (len(tokens) > 5) == splits


def rendered_by_both(folder, **theirs):
    """Renders the conversation by the folder's chat template, with ours and with transformers."""
    transformers = pytest.importorskip(
        "transformers", reason="the extra reference is not installed"
    )
    texts = json.loads((folder / "tokenizer_config.json").read_text())
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=texts["chat_template"],
        **theirs,
    )
    ours = tokenizer_lib.load(folder).render_chat(CHAT)
    return ours, fast.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)


def test_what_templates_may_name_and_use(folder):
    """A template may use special tokens, tools, documents, loop controls and generation blocks.

    The special tokens stand in a file of their own. Tools and documents are none.
    """
    texts = json.loads((folder / "tokenizer_config.json").read_text())
    del texts["bos_token"], texts["eos_token"]
    texts["chat_template"] = (
        "{{ bos_token }}{{ sep_token }}"
        "{% if tools is not none or documents is not none %}tools{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    special = dict(bos_token="<s>", eos_token="</s>", sep_token="<pad>")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ours, theirs = rendered_by_both(folder, **special)
    assert ours == theirs == "<s><pad>1 + 1 = ?</s>"


def test_the_prompt_of_tomorrow_is_that_of_today(folder):
    """Llama 3.2's template writes the date. With the real date, runs of two days would differ."""
    texts = json.loads((folder / "tokenizer_config.json").read_text())
    texts["chat_template"] = (
        'Today: {{ strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" }}'
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    assert tokenizer_lib.load(folder).render_chat(CHAT) == "Today: 26 Jul 2024"


def test_stop_and_pad_tokens_come_from_where_they_are_said(folder):
    ours = tokenizer_lib.load(folder)
    assert (ours.stop_tokens, ours.pad_token, ours.bos_token) == ((1, 5), 2, 0)
    (folder / "generation_config.json").unlink()
    assert tokenizer_lib.load(folder).stop_tokens == (7,)
    for no_token in ("{}", '{"eos_token_id": []}'):
        (folder / "config.json").write_text(no_token)
        with pytest.raises(ModelFolderError, match="eos_token_id"):
            tokenizer_lib.load(folder)


def test_what_is_said_nearer_to_the_use_counts(folder):
    """special_tokens_map.json overrules tokenizer_config.json, as in the library transformers.

    generation_config.json overrules both.
    """
    (folder / "special_tokens_map.json").write_text(
        json.dumps(dict(bos_token="<pad>", sep_token="<pad>"))
    )
    ours = tokenizer_lib.load(folder)
    assert (ours.special_tokens["bos_token"], ours.special_tokens["sep_token"]) == (
        "<pad>",
        "<pad>",
    )
    (folder / "generation_config.json").write_text(json.dumps(dict(eos_token_id=1, pad_token_id=0)))
    assert tokenizer_lib.load(folder).pad_token == 0


def test_padding_and_truncation_that_the_file_asks_for_are_left_out(folder):
    file = str(folder / "tokenizer.json")
    tokens = tokenizer_lib.load(folder).encode("abcd")
    stored = tokenizers.Tokenizer.from_file(file)
    stored.enable_padding(length=16)
    stored.enable_truncation(max_length=3)
    stored.save(file)
    assert tokenizer_lib.load(folder).encode("abcd") == tokens and len(tokens) == 5


def test_the_vocabulary_reaches_to_the_largest_token(folder):
    stored = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer_lib.load(folder).vocab_size == 259
    stored["model"]["vocab"]["far"] = 299
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    assert tokenizer_lib.load(folder).vocab_size == 300


def test_refusals(folder):
    with pytest.raises(
        ModelFolderError, match="^the chat template refuses the conversation: no tools"
    ):
        tokenizer_lib.load(folder).render_chat([{"role": "tool", "content": ""}])
    for broken in ("{% for %}", "{{ no_such_function() }}", "{{ messages + 3 }}"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": broken}))
        with pytest.raises(
            ModelFolderError,
            match=r"the chat template in .*tokenizer_config.json fails \(.*Error: ",
        ):
            tokenizer_lib.load(folder).render_chat(CHAT)
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    with pytest.raises(ModelFolderError, match=r"chat_template.jinja fails \(ZeroDivisionError: "):
        tokenizer_lib.load(folder).render_chat(CHAT)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="no chat template"):
        tokenizer_lib.load(folder).render_chat(CHAT)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFolderError, match="cannot be read"):
        tokenizer_lib.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match="no tokenizer.json"):
        tokenizer_lib.load(folder)


def test_stories260k(models):
    folder = models / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    ours = tokenizer_lib.load(folder)
    assert (ours.bos_token, ours.stop_tokens, ours.pad_token) == (1, (2,), 2)
    assert (
        ours.decode(ours.encode("Once upon a time, there was a dog."))
        == "Once upon a time, there was a dog."
    )
