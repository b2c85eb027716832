"""Attention that never looks across samples: one function signature, several kernels, chosen by name.

choice = choose_attention(config, wanted="auto", packed=True, half=True, here=Available.on(device))
log.info("attention: %s", choice)              # which kernel, and why not another one
register(choice)                               # then transformers knows choice.implementation by name
model(..., **batch.boundaries)                 # where samples end, on the way to the kernel

kernels.py  sdpa, varlen, flash_attention_2, flash_attention_3      flex.py  flex      blocked.py  blocked
interface.py  a kernel in the signature that transformers calls     choice.py  which kernel is right
mixers.py  what else mixes tokens: one sample at a time
causality.py  a model's own attention: no token sees a later one
"""

from sft.model.attention.causality import prove_causality
from sft.model.attention.choice import Available, Choice, choose_attention
from sft.model.attention.interface import expect_calls, hide_lengths, register
from sft.model.attention.mixers import prove_separation, separate_samples, share_rows

__all__ = [
    "Available",
    "Choice",
    "choose_attention",
    "expect_calls",
    "hide_lengths",
    "prove_causality",
    "prove_separation",
    "register",
    "separate_samples",
    "share_rows",
]
