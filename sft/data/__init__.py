"""Files in, batches out.

    rows/    files and hub data sets -> rows -> messages, in the formats that people have
    chat/    messages -> Samples with proven masks
    cache/   Samples on disk, memory-mapped
    order/   (seed, epoch, mixture) -> sample ids of a step -> Batch
    dataset  opens all of this as one Dataset

`encode` is the public function that shows, for one conversation, what would be trained.
"""

from sft.data.chat.encode import encode

__all__ = ["encode"]
