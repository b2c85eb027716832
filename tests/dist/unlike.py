"""The trainer on nodes whose files differ: each rank as if alone on its node, RANK in an override being its number."""

import os
import sys

from sft.config import load_config
from sft.fsdp_sft_trainer import main

if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = "0"
    main(load_config([text.replace("RANK", os.environ["RANK"]) for text in sys.argv[1:]]))
