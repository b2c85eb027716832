"""Check what types cannot say: combinations of keys, the number of ranks, and the file system."""
