"""Tokens that tokenizer.json lacks and other files of a folder name, compared with transformers."""

import json

import pytest

from staleness_grpo.policy.huggingface import tokenizer as tokenizer_lib
from staleness_grpo.policy.huggingface.config import ModelFolderError

pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from tests.helpers import byte_tokenizer  # noqa: E402

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [{"role": "user", "content": "1 + 1 = ? "}]
TOKEN = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
IM_TOKENS = {
    "259": {"content": "<|im_start|>", **TOKEN},
    "260": {"content": "<|im_end|>", **TOKEN},
}
# What is given -> the files of the folder, whose fields are added to those that are there.
FOLDERS: dict[str, dict[str, dict]] = {
    "added_tokens_decoder": {
        "tokenizer_config.json": dict(added_tokens_decoder=IM_TOKENS, eos_token="<|im_end|>")
    },
    "not in the order of their numbers, and one that is not special": {
        "tokenizer_config.json": dict(
            added_tokens_decoder={
                "260": IM_TOKENS["260"] | {"special": False},
                "259": IM_TOKENS["259"],
            }
        )
    },
    "added_tokens.json": {"added_tokens.json": {"<|im_end|>": 260, "<|im_start|>": 259}},
    "special tokens alone": {
        "tokenizer_config.json": dict(eos_token="<|im_start|>", pad_token="<|im_end|>")
    },
    "additional_special_tokens": {
        "tokenizer_config.json": dict(additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    },
    "extra_special_tokens by name": {
        "tokenizer_config.json": dict(
            extra_special_tokens={"start_token": "<|im_start|>", "stop_token": "<|im_end|>"}
        )
    },
    "a field of one model": {
        "tokenizer_config.json": dict(start_token="<|im_start|>", stop_token="<|im_end|>")
    },
    "special_tokens_map.json, which comes first": {
        "special_tokens_map.json": dict(
            eos_token={"content": "<|im_end|>", **TOKEN}, bos_token="<|im_start|>"
        )
    },
    "special_tokens_map.json, which does not count": {
        "tokenizer_config.json": dict(added_tokens_decoder=IM_TOKENS, eos_token="<|im_end|>"),
        "special_tokens_map.json": dict(eos_token="<|other|>", additional_special_tokens=["[x]"]),
    },
    "white space around a token": {
        "tokenizer_config.json": dict(
            added_tokens_decoder={
                "259": IM_TOKENS["259"] | {"rstrip": True},
                "260": IM_TOKENS["260"] | {"lstrip": True},
            }
        )
    },
}


def write(folder, files):
    byte_tokenizer.write(folder, CHATML)
    files = {"tokenizer_config.json": {}} | files
    files["tokenizer_config.json"] = {"eos_token": "</s>"} | files["tokenizer_config.json"]
    for name, fields in files.items():
        path = folder / name
        present = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(present | fields))


@pytest.mark.parametrize("given", FOLDERS)
def test_every_token_that_a_file_names_is_that_of_transformers(given, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="the extra reference is not installed"
    )
    write(tmp_path, FOLDERS[given])
    ours = tokenizer_lib.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = ours.encode_chat(CHAT)
    assert prompt == theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert prompt[0] == prompt[-11] == 259 and prompt[-13] == 260
    assert ours.vocab_size == len(theirs) == 261
    assert ours.decode(prompt) == theirs.decode(prompt, skip_special_tokens=True)
    assert ours.special_tokens["eos_token"] == theirs.eos_token
    assert ours.pad_token == theirs.pad_token_id


def test_a_number_that_contradicts_tokenizer_json_is_refused(tmp_path):
    decoder = dict(added_tokens_decoder={"300": IM_TOKENS["259"]})
    write(tmp_path, {"tokenizer_config.json": decoder})
    with pytest.raises(ModelFolderError, match=r"'<\|im_start\|>' is token 300, but .* token 259:"):
        tokenizer_lib.load(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": dict(added_tokens_decoder={"259": "<|im_start|>"})},
        {"tokenizer_config.json": dict(added_tokens_decoder=["<|im_start|>"])},
        {"added_tokens.json": {"<|im_start|>": "259"}},
    ],
)
def test_an_entry_of_another_form_is_refused(files, tmp_path):
    write(tmp_path, files)
    with pytest.raises(ModelFolderError, match=f"{next(iter(files))}.* the form "):
        tokenizer_lib.load(tmp_path)


def test_templates_may_give_every_argument_of_the_filter_tojson(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="the extra reference is not installed"
    )
    arguments = "ensure_ascii=True, indent=1, separators=(',', '='), sort_keys=True"
    write(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_text(
        f"{{{{ messages | tojson }}}}{{{{ messages | tojson({arguments}) }}}}"
    )
    chat = [{"role": "user", "content": "é < 1"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rendered = tokenizer_lib.load(tmp_path).render_chat(chat)
    assert rendered == theirs.apply_chat_template(chat, tokenize=False)
    assert '"é < 1"' in rendered and r'"content"="\u00e9 < 1"' in rendered
