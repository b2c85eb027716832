"""Files of a checkpoint have the rights that the umask leaves."""

import torch

from sft.parallel.shards import copy_local_parts


def test_others_may_read_what_a_rank_saves_where_the_umask_lets_them(tmp_path, world_of_one, monkeypatch):
    monkeypatch.setattr("sft.files.UMASK", 0o027)
    copy_local_parts({"weight": torch.ones(2)}).write(tmp_path / "rank_0.safetensors")
    assert (tmp_path / "rank_0.safetensors").stat().st_mode & 0o777 == 0o640
