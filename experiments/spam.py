"""Spam or ham: a small BERT on 4,601 mails of SpamAssassin's corpus, each cut after 256 tokens.

bigmodel prepare prose --tokenizer=bpe --out=data/prose-bpe
bigmodel prepare spam --tokenizer=data/prose-bpe/tokenizer.json --out=data/spam
bigmodel train --config=experiments/spam.py
bigmodel evaluate runs/<run id> --split=test
"""

from pathlib import Path

from bigmodel import config

sentiment = config.load_module(str(Path(__file__).with_name("sentiment.py")), "experiment")


def get_config():
    config = sentiment.get_config("prose")
    config.data.name = "spam"
    config.data.seq_len = 256
    config.train.tokens = 23_000
    return config
