"""From a corpus, a file, a folder or a Hugging Face dataset to token shards and a manifest (imports nothing)."""
