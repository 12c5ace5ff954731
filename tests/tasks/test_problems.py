"""Problems are read from files as people have them: columns, messages, numbers, Parquet."""

import json
import sys

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import problems
from staleness_grpo.tasks.problems import Columns, TextProblem, read_problems
from tests.helpers.byte_model import problems_file

MESSAGES = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}]
# As in the files that other trainers read.
NESTED = {"prompt": MESSAGES, "reward_model": {"style": "rule", "ground_truth": "2"}, "ability": ""}


def test_columns_may_have_any_name(tmp_path):
    line = {"problem": "1+1?", "solution": "it is #### 2", "question": "other", "answer": "other"}
    path = problems_file(tmp_path, line)
    chosen = Columns("problem", "solution")
    assert read_problems(path, chosen) == [TextProblem("1+1?", "it is #### 2")]
    assert read_problems(path, Columns(answer="solution")) == [TextProblem("other", "it is #### 2")]
    # Without a column of answers, the answer to a question is what follows '####'.
    path = problems_file(tmp_path, {"question": "1+1?", "answer": "it is #### 2"})
    assert read_problems(path, Columns(prompt="question"))[0].reference == "2"
    assert read_problems(path, Columns(answer="answer"))[0].reference == "it is #### 2"


def test_a_column_may_be_a_field_inside_another(tmp_path):
    chosen = Columns(answer="reward_model.ground_truth")
    (problem,) = read_problems(problems_file(tmp_path, NESTED), chosen)
    assert problem == TextProblem(tuple(MESSAGES), "2")
    dotted = {"prompt": "a", "x.y": "with a dot", "x": {"y": "inside"}}
    path = problems_file(tmp_path, dotted)
    assert read_problems(path, Columns(answer="x.y"))[0].reference == "with a dot"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("task"), "^prompt_column=task: line 1 has no such column: choose .*a, b"),
        (Columns("a", "task"), "^answer_column=task: line 1 has no such column: choose .*a, b"),
        (Columns("a"), "^path: line 1 has no text as its answer .its columns: a, b.*answer_column"),
        (Columns(), "^path: line 1 has no text as its question .its columns: a, b.*prompt_column"),
        (Columns("a", "b.c"), "^answer_column=b.c: line 1 has no c there: choose one of .d"),
        (Columns("a.c", "a"), "^prompt_column=a.c: line 1 has no c there: choose one of .none"),
        (Columns("b.d", "a"), "^path: line 1 has no text as its b.d: give each problem a text"),
    ],
)
def test_an_absent_column_is_refused_with_those_that_are_there(columns, message, tmp_path):
    with pytest.raises(FieldError, match=message):
        read_problems(problems_file(tmp_path, {"a": "1+1?", "b": {"d": 7}}), columns)


def test_only_some_of_many_columns_are_listed(tmp_path):
    path = problems_file(tmp_path, {f"c{i}": "" for i in range(25)})
    with pytest.raises(FieldError, match="c0, .*, c19 and 5 more"):
        read_problems(path, Columns("x"))


@pytest.mark.parametrize(
    ("written", "text"),
    [("7", "7"), ("7.5", "7.5"), ("-3", "-3"), ("12345678901234567890", "12345678901234567890")],
)
def test_a_number_is_an_answer(written, text, tmp_path):
    path = problems_file(tmp_path, f'{{"prompt": "a", "answer": {written}}}')
    assert read_problems(path)[0].reference == text


@pytest.mark.parametrize("written", ["NaN", "Infinity", "1e999", "true", "null", "[7]"])
def test_what_is_neither_text_nor_number_is_no_answer(written, tmp_path):
    path = problems_file(tmp_path, f'{{"prompt": "a", "answer": {written}}}')
    with pytest.raises(FieldError, match="line 1 has no text as its answer"):
        read_problems(path)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "user"}], "line 1 has a message with the fields role in its prompt: write each"),
        ([{"role": "user", "content": ["hi"]}], "a message with the fields role, content"),
        ([{}], "line 1 has a message with the fields none"),
        (
            [{"role": "user", "content": "hi", "tool_calls": []}],
            "a message with the fields role, content, tool_calls",
        ),
        ([{"role": "user", "content": " "}], "line 1 has no text as its prompt"),
        ([{"role": "", "content": "hi"}], "line 1 has no text as its prompt.role"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair.*prompt.content"),
        (
            [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}],
            "line 1 has a prompt that ends with the assistant's message: end with",
        ),
    ],
)
def test_messages_that_cannot_be_asked_are_refused_by_their_line(prompt, message, tmp_path):
    with pytest.raises(FieldError, match=message) as error:
        read_problems(problems_file(tmp_path, {"prompt": prompt, "answer": "2"}))
    assert "\n" not in str(error.value)


def parquet(folder, rows, name="problems.parquet"):
    library = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path = folder / name
    library.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    return path


def test_a_parquet_file_has_the_problems_of_the_same_json_lines(tmp_path):
    rows = [NESTED | {"id": 1}, NESTED | {"id": 2, "prompt": MESSAGES[1:]}]
    chosen = Columns(answer="reward_model.ground_truth")
    path = parquet(tmp_path, rows)
    read = read_problems(path, chosen)
    assert read == read_problems(problems_file(tmp_path, *rows), chosen)
    assert [problem.place for problem in read] == ["row 1", "row 2"]
    dotted = [{"prompt": "a", "x.y": "with a dot", "x": {"y": "inside"}}]
    (problem,) = read_problems(parquet(tmp_path, dotted, "dotted.parquet"), Columns(answer="x.y"))
    assert problem.reference == "with a dot"
    # The content decides, whatever the name is.
    assert read_problems(path.rename(tmp_path / "data"), chosen) == read


def test_a_parquet_file_may_have_numbers_and_messages_with_more_fields(tmp_path):
    prompt = [{"role": "user", "content": "1+1?", "name": None}]
    rows = [{"prompt": prompt, "answer": 2.5}, {"prompt": prompt, "answer": 7.25}]
    read = read_problems(parquet(tmp_path, rows))
    assert read == [TextProblem(({"role": "user", "content": "1+1?"},), t) for t in ("2.5", "7.25")]
    questions = [{"question": "1+1?", "answer": "x\n#### 2"}]
    assert read_problems(parquet(tmp_path, questions)) == [TextProblem("1+1?", "2")]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_an_answer_in_a_narrow_float_is_the_number_that_was_written(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    numbers = arrow.array(np.array([0.1, 7.0, 2.75], kind))
    inside = arrow.StructArray.from_arrays([numbers, arrow.array(list("abc"))], ["x", "y"])
    table = arrow.table({"prompt": ["1", "2", "3"], "answer": numbers, "deep": inside})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "data")
    for column in ("answer", "deep.x"):
        read = read_problems(tmp_path / "data", Columns(answer=column))
        assert [problem.reference for problem in read] == ["0.1", "7.0", "2.75"]


def test_a_column_that_is_given_twice_is_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    columns = [arrow.array(["a"]), arrow.array(["b"]), arrow.array(["c"])]
    table = arrow.Table.from_arrays(columns, ["prompt", "prompt", "answer"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "data")
    with pytest.raises(FieldError, match="the file has the column prompt twice: leave one"):
        read_problems(tmp_path / "data")


def test_an_answer_may_be_a_whole_number_of_any_size(tmp_path):
    large = 10**400 + 7
    (problem,) = read_problems(problems_file(tmp_path, {"prompt": "a", "answer": large}))
    assert problem.reference == str(large)


def test_a_parquet_file_is_refused_by_column_row_or_reason(tmp_path):
    path = parquet(tmp_path, [{"a": "1+1?", "b": "2"}, {"a": "2+2?", "b": None}])
    for columns, message in (
        (Columns(), "path: the file has no text as its question .its columns: a, b"),
        (Columns("c"), "prompt_column=c: the file has no such column: choose .*a, b"),
        (Columns("a", "b"), "path: row 2 has no text as its b"),
    ):
        with pytest.raises(FieldError, match=message):
            read_problems(path, columns)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FieldError, match="^path: the Parquet file cannot be read .*: give a whole"):
        read_problems(path)


def test_a_parquet_file_without_pyarrow_is_refused_with_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "problems.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(problems.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        FieldError, match="^path: a Parquet file needs pyarrow: pip install pyarrow"
    ):
        read_problems(path)


def test_json_lines_may_be_named_as_they_like(tmp_path):
    path = tmp_path / "problems.txt"
    path.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    assert read_problems(path) == [TextProblem("a", "b")]
