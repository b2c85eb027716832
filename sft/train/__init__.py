"""Everything one training run does around the step: read, build, validate, save, report."""
