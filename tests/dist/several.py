"""Several runs one after the other in the same ranks: `torchrun ... -m tests.dist.several runs.json`.

Starting Python and importing torch costs more than a tiny run. runs.json is a list of lists of overrides.
"""

import gc
import json
import sys
from pathlib import Path

from sft import load_config, run
from sft.track import curve
from sft.train import result


def spare_time() -> None:
    """Halve the time of a tiny run: draw no picture, and let the collection at its end pass over what was imported.

    The commands do the latter, too (sft/config/cli.py). Tests that look at pictures start them.
    """

    def draw(metrics_path: Path, png_path: Path, *, title: str) -> None:
        png_path.touch()

    curve.draw = result.draw_curve = draw
    gc.freeze()


if __name__ == "__main__":
    spare_time()
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        run(load_config(overrides))
