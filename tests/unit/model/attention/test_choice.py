"""Which kernel is chosen, on machines that are not here."""

import sys

import pytest
import torch
from transformers import (
    BertConfig,
    Gemma2Config,
    GPTJConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MiniMaxConfig,
    PhimoeConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from sft.errors import InputError
from sft.model.attention import Available, choose_attention
from sft.model.attention.choice import KERNELS, Choice, why_not
from sft.model.load import build_skeleton
from tests.assets import attention_on_cpu, boundaries
from tests.models import FAMILIES, SIZES, config_of

CPU = Available("cpu")
H100 = Available("cuda", (9, 0), triton="")
A100_FLASH = Available("cuda", (8, 0), flash_attn="", flash_attn_interface="", triton="")
H100_FLASH = Available("cuda", (9, 0), flash_attn="", flash_attn_interface="", triton="")
V100 = Available("cuda", (7, 0), triton="")
BARE = Available("cuda", (9, 0))
BROKEN = Available(
    "cuda", (9, 0), flash_attn_interface="is installed, but cannot be imported (undefined symbol)", triton=""
)


def choose(family="llama", *, wanted="auto", packed=True, half=True, here=H100, **overrides):
    return choose_attention(config_of(family, **overrides), wanted=wanted, packed=packed, half=half, here=here)


@pytest.mark.parametrize(
    ("here", "family", "half", "kernel"),
    [
        (CPU, "llama", True, "sdpa"),
        (CPU, "gpt_oss", False, "sdpa"),
        (CPU, "llama", False, "sdpa"),
        (CPU, "gemma2", True, "sdpa"),
        (H100, "llama", True, "varlen"),
        (H100, "llama", False, "sdpa"),
        (H100, "gemma2", True, "flex"),
        (H100, "gemma3", True, "varlen"),
        (H100, "gpt_oss", True, "flex"),
        (BARE, "gpt_oss", True, "sdpa"),
        (V100, "llama", True, "sdpa"),
        (H100_FLASH, "llama", True, "flash_attention_3"),
        (H100_FLASH, "gemma2", True, "flash_attention_3"),
        (H100_FLASH, "gpt_oss", True, "flex"),
        (A100_FLASH, "llama", True, "varlen"),
        (A100_FLASH, "gemma2", True, "flash_attention_2"),
    ],
)
def test_auto_takes_the_fastest_that_is_right(here, family, half, kernel):
    choice = choose(family, half=half, here=here)
    assert choice.kernel == kernel
    assert choice.implementation == f"packed_{KERNELS[kernel]}"


def test_dropout_and_wide_heads_leave_the_kernels_without_them():
    assert choose(attention_dropout=0.1).kernel == "sdpa"
    assert choose(attention_dropout=0.1, here=A100_FLASH).kernel == "flash_attention_2"
    assert choose(head_dim=512, here=H100_FLASH).kernel == "sdpa"
    assert choose(head_dim=512, here=CPU, wanted="blocked").kernel == "blocked"


def test_the_log_line_says_which_and_why():
    assert str(choose(here=CPU)) == (
        "sdpa on rows of whole samples (flash_attention_3, varlen, flash_attention_2: needs CUDA)"
    )
    assert str(choose()) == (
        "varlen on rows of whole samples (flash_attention_3: needs the package flash_attn_interface, "
        "which is not installed)"
    )
    assert "needs the package flash_attn_interface, which is installed, but cannot be imported" in str(
        choose(here=BROKEN)
    )
    assert str(choose(wanted="sdpa")) == "sdpa on rows of whole samples (model.attn_implementation=sdpa)"
    assert str(choose(here=H100_FLASH)) == "flash_attention_3 on rows of whole samples (the fastest here)"
    assert "memory for the square of a sample's length" in str(choose("gemma2", here=CPU))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("wanted", [kernel for kernel in KERNELS if kernel not in ("sdpa", "blocked")])
def test_what_needs_cuda_is_refused_on_the_cpu_with_what_is_possible(wanted, packed):
    said = f"model.attn_implementation={wanted} needs CUDA; possible for llama on this cpu device: auto, blocked, sdpa."
    with pytest.raises(InputError, match=said):
        choose(wanted=wanted, packed=packed, here=CPU)


@pytest.mark.parametrize(
    ("wanted", "family", "half", "here", "said"),
    [
        ("varlen", "gemma2", True, H100, "has no soft-capping; .*: auto, flex, sdpa."),
        ("varlen", "gpt_oss", True, H100, "has no attention sinks; .*: auto, flex, sdpa."),
        ("flash_attention_2", "llama", True, H100, "needs the package flash_attn, which is not installed"),
        ("flash_attention_3", "llama", True, A100_FLASH, "needs a Hopper GPU"),
        ("varlen", "llama", False, H100, "computes in 16 bits only .model.fsdp_config.compute_dtype=bf16."),
        ("varlen", "llama", True, V100, "needs an Ampere GPU"),
        ("flex", "llama", True, BARE, "needs triton, .*: auto, varlen, sdpa."),
        ("blocked", "llama", True, H100, "is for CPUs; .*: auto, varlen, flex, sdpa."),
        ("blocked", "gemma2", True, CPU, "has no soft-capping; .*: auto, sdpa."),
    ],
)
def test_an_impossible_choice_says_why_and_what_is_possible(wanted, family, half, here, said):
    with pytest.raises(InputError, match=rf"model.attn_implementation={wanted} {said}"):
        choose(family, wanted=wanted, half=half, here=here)


def test_what_is_asked_for_is_taken_where_it_is_possible():
    for wanted in KERNELS:
        here = CPU if wanted == "blocked" else H100_FLASH
        for packed, layout in ((True, "packed_"), (False, "padded_")):
            choice = choose(wanted=wanted, here=here, packed=packed)
            if wanted == "sdpa" and not packed:
                assert (choice.implementation, choice.kernel) == ("sdpa", None)
            else:
                assert choice.implementation == layout + KERNELS[wanted]


def test_padded_rows_take_what_transformers_has():
    for wanted, here in (("auto", CPU), ("sdpa", CPU), ("sdpa", H100_FLASH)):
        for family in FAMILIES:
            choice = choose(family, wanted=wanted, packed=False, here=here)
            without = family in ("gemma2", "gpt_oss")
            assert (choice.kernel, choice.implementation) == (None, "eager" if without else "sdpa")


def test_on_a_gpu_padded_rows_take_the_kernels_of_packed_ones():
    """Those of transformers look at every micro-batch, and the host waits for it: tests/unit/test_waits.py."""
    for family in FAMILIES:
        packed, padded = (choose(family, packed=packed) for packed in (True, False))
        assert padded.kernel == packed.kernel
        assert padded.implementation == packed.implementation.replace("packed", "padded")


def test_on_a_gpu_transformers_keeps_what_may_need_its_masks():
    for config in (BertConfig(), JambaConfig(), GPTJConfig()):
        assert choose_attention(config, wanted="auto", packed=False, half=True, here=H100).kernel is None


HYBRIDS = {
    "mamba": MambaConfig(),
    "jamba": JambaConfig(),
    "qwen3_next": Qwen3NextConfig(),
    "minimax": MiniMaxConfig(**SIZES, layer_types=["linear_attention", "full_attention"]),
}


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_are_packed_and_keep_their_masks_on_padded_rows(family):
    config = HYBRIDS[family]
    assert attention_on_cpu(config, packed=True).kernel == "sdpa"
    assert choose_attention(config, wanted="auto", packed=False, half=True, here=H100).kernel is None


def test_layers_that_are_told_no_samples_are_refused_in_packed_rows():
    config = LlamaConfig(**SIZES, layer_types=["chunked_attention", "full_attention"])
    with pytest.raises(InputError, match=r"layers \(chunked_attention\) whose tokens would see .*remove_padding=false"):
        attention_on_cpu(config, packed=True)
    assert attention_on_cpu(config, packed=False).kernel is None


def test_attention_that_cannot_be_exchanged_is_refused():
    with pytest.raises(InputError, match=r"gptj does not let its attention be exchanged; set use_remove_padding=false"):
        attention_on_cpu(GPTJConfig(), packed=True)
    with pytest.raises(
        InputError, match=r"gptj does not let its attention be exchanged; set model.attn_implementation=auto"
    ):
        choose_attention(GPTJConfig(), wanted="flex", packed=False, half=True, here=H100)


def test_a_window_that_the_attention_is_not_told_of_is_refused():
    """phimoe's mask has it, and no kernel sees the mask."""
    config = PhimoeConfig(sliding_window=4, max_position_embeddings=64)
    for packed, way_out in ((True, "use_remove_padding=false"), (False, "model.attn_implementation=auto")):
        with pytest.raises(InputError, match=rf"phimoe tells its sliding window .* masks.*; set {way_out}"):
            choose_attention(config, wanted="varlen", packed=packed, half=True, here=H100)
    assert choose_attention(config, wanted="auto", packed=False, half=True, here=H100).kernel is None
    config.sliding_window = 64  # as long as the longest text
    assert choose_attention(config, wanted="auto", packed=True, half=True, here=H100).kernel == "varlen"


def test_short_convolutions_are_found_where_the_configuration_does_not_tell():
    """LFM2's default configuration calls every layer full attention."""
    config = Lfm2Config(**SIZES, layer_types=["full_attention", "full_attention"])
    attention = attention_on_cpu(config, packed=True)
    config.layer_types = ["conv", "full_attention"]
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    assert "row_of_mixers" in vars(model)


@pytest.mark.parametrize(("kernel", "told"), [("sdpa", True), ("blocked", True), ("varlen", False)])
def test_only_a_kernel_that_asks_the_host_is_handed_the_lengths(monkeypatch, kernel, told):
    """A tuple in the arguments of compiled layers compiles them again for every number of samples."""
    monkeypatch.setattr("sft.model.attention.interface.load_kernel", lambda _: None)
    config = Qwen3Config(**SIZES)
    attention = Choice(f"packed_{kernel}_told", kernel, True, "")
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    handed = {}
    model.register_forward_pre_hook(lambda _, args, kwargs: handed.update(kwargs) or (args, kwargs), with_kwargs=True)
    with pytest.raises(TypeError, match="NoneType"):  # the kernel
        model(torch.zeros(1, 5, dtype=torch.long, device="meta"), use_cache=False, **boundaries(2, 3))
    assert ("sample_lengths" in handed, handed["max_seqlen"]) == (told, 3)


def test_a_soft_cap_that_is_not_set_is_none():
    config = Gemma2Config(**SIZES, attn_logit_softcapping=None)
    assert choose_attention(config, wanted="auto", packed=True, half=True, here=H100).kernel == "varlen"
    assert isinstance(config_of("llama"), LlamaConfig)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "is not installed"),
        ("raise ImportError('undefined symbol: _ZN3c10\\nand more')", "cannot be imported (undefined symbol: _ZN3c10)"),
        ("raise RuntimeError", "cannot be imported (RuntimeError)"),
        ("cute = 1", "is installed without its flash_attn_varlen_func"),
        ("def flash_attn_varlen_func(): ...", ""),
    ],
)
def test_a_package_that_is_found_may_not_work(code, said, tmp_path, monkeypatch):
    if code is not None:
        (tmp_path / "flash_attn_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn_of_a_test", raising=False)
    reason = why_not("flash_attn_of_a_test", "flash_attn_varlen_func")
    assert reason.endswith(said) and bool(reason) == bool(said)
