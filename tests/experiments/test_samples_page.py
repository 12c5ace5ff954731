"""A finished training with samples has a page that shows them beside the curves."""

import html.parser

from experiments.train import samples_page
from experiments.train.__main__ import draw, main
from staleness_grpo.runtime.records import read_jsonl, write_jsonl
from tests.helpers.tiny import tiny_config


class Shown(html.parser.HTMLParser):
    """Collects the words of a page, and the tags in it."""

    def __init__(self, page: str):
        super().__init__()
        self.words, self.tags = "", set()
        self.feed(page)

    def handle_data(self, data):
        self.words += data

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


def test_a_training_draws_a_page_of_its_samples(tmp_path):
    main(tiny_config(**{"metrics.samples_every": 2, "lag.max_lag": 1}), tmp_path)
    png, page = draw(tmp_path)
    assert (png.name, page.name) == ("training.png", "samples.html")
    shown = Shown(page.read_text(encoding="utf-8"))
    assert "img" in shown.tags and "data:image/png;base64," in page.read_text(encoding="utf-8")
    for sample in read_jsonl(tmp_path / "samples.jsonl"):
        assert f"Learner step {sample['step']}" in shown.words
        assert f"lag {sample['lag']}; prompt: {sample['prompt']}" in shown.words
        assert all(response in shown.words for response in sample["responses"])


def test_a_training_without_samples_has_no_page(tmp_path):
    main(tiny_config(steps=2), tmp_path)
    assert [path.name for path in draw(tmp_path)] == ["training.png"]
    (tmp_path / "samples.jsonl").write_text("", encoding="utf-8")
    assert samples_page.write(tmp_path, tmp_path / "training.png") == []


def test_text_is_never_taken_for_html_and_signs_that_are_not_printed_are_marked(tmp_path):
    sample = {
        "step": 3,
        "lag": 0,
        "prompt": "a\nb <script>",
        "rewards": [1.0, None],
        "log_ratio_sum": [0.25, -1.5],
        "responses": ["<b>\x1b[31m & 'x'", "ü"],
    }
    write_jsonl(tmp_path / "samples.jsonl", [sample])
    (tmp_path / "training.png").write_bytes(b"no picture")
    (page,) = samples_page.write(tmp_path, tmp_path / "training.png")
    shown = Shown(page.read_text(encoding="utf-8"))
    assert not {"script", "b "} & shown.tags and "prompt: a b <script>" in shown.words
    assert "<b>\N{MIDDLE DOT}[31m & 'x'" in shown.words and "ü" in shown.words
    assert "0.25" in shown.words and "-1.5" in shown.words and "None" in shown.words


def test_a_long_run_shows_some_of_its_steps():
    assert samples_page.chosen_steps([4, 8]) == [4, 8]
    chosen = samples_page.chosen_steps(list(range(0, 1000, 10)))
    assert len(chosen) == samples_page.MAX_STEPS
    assert chosen[0] == 0 and chosen[-1] == 990 and chosen == sorted(set(chosen))
