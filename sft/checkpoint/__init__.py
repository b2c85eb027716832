"""Write, find and verify checkpoints. A checkpoint exists or it does not.

    <run>/checkpoints.jsonl                the ledger: one line per committed checkpoint
    <run>/global_step_N/
        state/rank_00000.safetensors       a rank's part of trained weights and optimizer state; tensors only, no pickle
        state/rng_00000.safetensors        a rank's random state
        huggingface/                       the model, ready to load
        manifest.json                      step, counters, world, fingerprint, size and sha256 of every file
        manifest.sha256                    of manifest.json, as sha256sum writes it

STATE has state/ and can be resumed, SAMPLER has huggingface/ and can be loaded, BOTH has both. All ranks write into
a hidden directory; rank 0 adds the manifest last, renames, then appends to the ledger. What is found under its final
name was complete when it was written, and the hashes tell whether it still is.

    commit    writing one, aside and in the background     find    the newest that is still what was written
    state     what it holds of model and optimizer         tidy    which ones stay in the run directory
    manifest  what its files must be                       init    weights of another run's checkpoint
    ledger    checkpoints.jsonl                            promote a model out of the run
    optimizer what any optimizer remembers, by name

Why not torch.distributed.checkpoint: its metadata is a pickle, and it loads flipped bits without a word. Boxes in
safetensors files need neither, and reading a model uses the same code (sft/parallel/shards.py).
"""

from sft.checkpoint.commit import Saver
from sft.checkpoint.find import differs_from_model, newest, verify
from sft.checkpoint.init import Origin, find_origin, start_from
from sft.checkpoint.ledger import KINDS, Kind
from sft.checkpoint.manifest import MODEL_DIR, CheckpointError, has_model, has_state, read_manifest
from sft.checkpoint.state import load
from sft.checkpoint.tidy import BEST, forget_after, mark_best, mend_best, prepare, start_over

__all__ = [
    "BEST",
    "KINDS",
    "MODEL_DIR",
    "CheckpointError",
    "Kind",
    "Origin",
    "Saver",
    "differs_from_model",
    "find_origin",
    "forget_after",
    "has_model",
    "has_state",
    "load",
    "mark_best",
    "mend_best",
    "newest",
    "prepare",
    "read_manifest",
    "start_from",
    "start_over",
    "verify",
]
