"""Raw corpora -> parquet. One file per corpus; the parquet file is all the trainer knows of it."""
