"""What tokenising a file counted, kept beside its samples and said at every start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sft.data.types import RowCounts

FACTS_FILE = "facts.json"
MAX_BAD_ROWS_SHOWN = 10
MAX_PLACES = 5  # rows that are named as examples of something


@dataclass
class CacheFacts:
    """How many rows of which kind a file had, and the first of each kind ("file:row").

    name: of the file when it was tokenised, with which the places begin
    """

    name: str
    counts: RowCounts = field(default_factory=RowCounts)
    first_bad: list[str] = field(default_factory=list)  # what is wrong with each
    first_untrained: list[str] = field(default_factory=list)
    first_typed: list[str] = field(default_factory=list)  # see RowCounts.rows_with_typed_tokens

    def add(self, counts: RowCounts, *, bad: Sequence[str], untrained: Sequence[str], typed: Sequence[str]) -> None:
        """Add what was counted of more rows of the file."""
        self.counts.add(counts)
        self.first_bad = [*self.first_bad, *bad][:MAX_BAD_ROWS_SHOWN]
        self.first_untrained = [*self.first_untrained, *untrained][:MAX_PLACES]
        self.first_typed = [*self.first_typed, *typed][:MAX_PLACES]

    def write(self, directory: Path) -> None:
        """Write these counts and examples into `directory`, the cache of the file, as facts.json."""
        (directory / FACTS_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path, name: str) -> CacheFacts:
        """Read the facts of a cache. Its file is called `name` by now: it may have been renamed, or be a copy."""
        stored = json.loads((directory / FACTS_FILE).read_text())
        facts = cls(**stored | {"counts": RowCounts(**stored["counts"])})

        def renamed(places: Sequence[str]) -> list[str]:
            return [
                name + place.removeprefix(facts.name) if place.startswith(facts.name) else place for place in places
            ]

        return replace(
            facts,
            name=name,
            first_bad=renamed(facts.first_bad),
            first_untrained=renamed(facts.first_untrained),
            first_typed=renamed(facts.first_typed),
        )

    def remarks(self) -> Iterator[str]:
        """Yield a line for each kind of rows that did not become one sample each; said at every start."""
        counts = self.counts
        if counts.bad_rows:
            first = "\n  ".join(["first:", *self.first_bad])
            yield f"data.bad_rows=drop leaves out {counts.bad_rows:,} of {counts.rows:,} rows; {first}"
        if counts.untrained_rows:
            yield (
                f"{counts.untrained_rows:,} of {counts.rows:,} rows left out: nothing in them is trained (blank, "
                "data.train_on, weights)"
            )
        if counts.rows_with_foreign_tags:
            yield (
                f"{counts.rows_with_foreign_tags:,} of {counts.rows:,} rows spell markup of other models "
                "(<|im_start|>, [INST], <image>, </s> at the end, ...), which is plain text for this tokenizer and is "
                "trained as such; if they were rendered for another model, take the markup out and write messages"
            )
        if counts.results_as_json:
            results = f"{counts.results_as_json:,} tool results"
            yield f"{results} are objects or lists; the chat template gets them as JSON text"
        if counts.unrolled_rows:
            share = 100 * counts.repeated_tokens / counts.tokens
            yield (
                f"unrolled {counts.unrolled_rows:,} rows into {counts.unrolled_samples:,} samples, since the chat "
                f"template rewrites earlier turns; {share:.0f} % of the tokens are repeated prefixes "
                "(data.thinking_history)"
            )
        if counts.turns_left_out:
            yield (
                f"{counts.turns_left_out:,} turns are not trained: data.thinking_history=last, and the chat template "
                "rewrites them"
            )
        if counts.thoughts_never_opened:
            yield (
                f"{counts.thoughts_never_opened:,} replies say </think> without <think>, and the chat template takes "
                "all words before it for a thought; open such a thought with <think>, or spell a tag that is none in "
                "another way"
            )
        if counts.thoughts_left_out:
            yield (
                f"{counts.thoughts_left_out:,} thoughts are not trained: data.train_on=all, and the chat template "
                "drops them from history"
            )
