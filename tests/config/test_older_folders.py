"""Folders that an older version began go on, because newer fields are unset by default."""

from experiments.common import cli
from staleness_grpo.config.defaults import default_config
from staleness_grpo.runtime.records import flattened, plain, read_json

# The newest record whose version is the first one that later versions must be able to go on with.
RECORD = cli.ROOT / "experiments" / "results" / "law_rest" / "config.json"


def test_fields_that_a_record_lacks_are_unset_by_default():
    known = set(flattened(read_json(RECORD)))
    assert set(flattened(plain(default_config().to_dict()))) <= known
