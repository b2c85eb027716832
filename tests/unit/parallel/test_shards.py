"""Files of a checkpoint have the rights that the umask leaves."""

import torch

from sft.parallel.shards import copy_local_parts, whole_tensor


def test_others_may_read_what_a_rank_saves_where_the_umask_lets_them(tmp_path, world_of_one, monkeypatch):
    monkeypatch.setattr("sft.files.UMASK", 0o027)
    copy_local_parts({"weight": torch.ones(2)}).write(tmp_path / "rank_0.safetensors")
    assert (tmp_path / "rank_0.safetensors").stat().st_mode & 0o777 == 0o640


def test_whole_tensors_are_copied_to_the_cpu_of_the_rank_that_writes_alone(world_of_one, monkeypatch):
    weight = torch.arange(6.0).reshape(2, 3)
    mine = whole_tensor(weight, torch.bfloat16)
    assert mine.dtype == torch.bfloat16 and torch.equal(mine.float(), weight)
    monkeypatch.setattr("sft.parallel.shards.dist.get_rank", lambda: 1)
    others = whole_tensor(weight, torch.bfloat16)
    assert others.is_meta and others.shape == (2, 3) and others.dtype == torch.bfloat16
