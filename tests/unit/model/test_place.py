"""From a directory to a model on the mesh."""

from types import SimpleNamespace

import pytest
import torch

from sft import load_config
from sft.model.place import build_bare_model, place, sharding_of
from sft.model.pretrained import load_config as load_model_config
from sft.parallel.fsdp import Sharding
from sft.parallel.mesh import build_mesh
from sft.parallel.shards import local_part
from tests.assets import attention_on_cpu, tiny_model_dir


@pytest.mark.parametrize("tie", [True, False])
def test_untied_ends_are_placed_as_groups_of_their_own(tie, tmp_path, world_of_one):
    directory = tiny_model_dir(tmp_path / "model", tie=tie)
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    config = load_config([f"model.partial_pretrain={directory}", f"data.train_files={rows}", "data.val_files=null"])
    attention = attention_on_cpu(load_model_config(directory, trust_remote_code=False), packed=False)
    model, grown = build_bare_model(config, directory, attention)
    sharding = sharding_of(config.model.fsdp_config)
    place(model, config, directory, build_mesh(1, "cpu"), sharding, world_of_one, grown=grown)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    assert [hasattr(end, "_get_fsdp_state") for end in ends] == [not tie, not tie]
    assert not any(weight.is_meta for weight in model.parameters()) and all(
        torch.isfinite(local_part(weight)).all() for weight in model.parameters()
    )


def test_the_cores_of_a_rank_are_looked_at_where_a_gpu_leaves_the_optimizer_to_them(tmp_path, monkeypatch):
    """Before anything is sharded; on a CPU, which has no other place for it, nothing is said."""
    directory = tiny_model_dir(tmp_path / "model")
    (tmp_path / "rows.jsonl").touch()
    config = load_config(
        [f"model.partial_pretrain={directory}", f"data.train_files={tmp_path / 'rows.jsonl'}", "data.val_files=null"]
    )
    attention = attention_on_cpu(load_model_config(directory, trust_remote_code=False), packed=False)
    model, _ = build_bare_model(config, directory, attention)

    class Looked(Exception):
        pass

    def look():
        raise Looked

    monkeypatch.setattr("sft.model.place.why_one_thread", look)
    with_gpu = SimpleNamespace(device=torch.device("cuda"))
    sharding = Sharding(torch.bfloat16, offload=True)
    with pytest.raises(Looked):
        place(model, config, directory, SimpleNamespace(sp_size=1), sharding, with_gpu, grown=False)
