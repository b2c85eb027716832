"""Several runs one after the other in the same ranks: `torchrun ... -m tests.dist.several runs.json`.

Starting Python and importing torch costs more than a tiny run. runs.json is a list of lists of overrides.
"""

import json
import sys
from pathlib import Path

from sft import load_config, run

if __name__ == "__main__":
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        run(load_config(overrides))
