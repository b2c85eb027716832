"""Copy a checkpoint's model out of a run: `sft-promote`, for a checkout that is not installed.

python scripts/promote_checkpoint.py --checkpoints-jsonl run/checkpoints.jsonl [--step 400]
"""

from sft.checkpoint.promote import main

if __name__ == "__main__":
    main()
