"""Print the reference page: python -m sft.config > docs/config.md"""

from sft.config.reference import reference

print(reference(), end="")
