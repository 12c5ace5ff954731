"""A digest of weights reads parts of each file, from its first byte to its last."""

import pytest

from staleness_grpo.policy.huggingface import ModelFolderError, weights, weights_digest


def test_a_change_of_size_beginning_middle_or_end_is_another_digest(tmp_path):
    with pytest.raises(ModelFolderError, match="has neither"):
        weights_digest(tmp_path)
    path = tmp_path / weights.WHOLE
    size = weights.PART_BYTES * weights.NUM_PARTS * 2  # so that half of the file is read
    inside = 31 * (size - weights.PART_BYTES) // 63  # the first byte of the part before the middle
    content = bytearray(size)
    digests = set()
    for place in (None, 0, inside, size - 1):
        changed = content.copy()
        if place is not None:
            changed[place] = 1
        path.write_bytes(changed)
        digests.add(weights_digest(tmp_path))
        assert weights_digest(str(tmp_path)) in digests
    path.write_bytes(content + b"\0")
    digests.add(weights_digest(tmp_path))
    assert len(digests) == 5
