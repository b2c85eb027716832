"""Tokenise rows once, keep the samples on disk, and read them memory-mapped."""
