"""An encoder-decoder that translates the help of LibreOffice: English to German, or to Chinese.

    bigmodel prepare help-en-de --out=data/help-en-de-bpe --tokenizer=bpe
    bigmodel train --config=experiments/translate.py
    bigmodel evaluate runs/<run id> --split=test

`experiments/translate.py:zh` is English to Chinese, of data/help-en-zh-bpe. Vaswani's label smoothing and dropout;
pre-norm and Muon.
"""

from bigmodel import budget


def get_config(language="de"):
    config = budget.base("encdec", "tasks")
    config.model.width = 128
    config.model.depth = 3
    config.model.num_heads = 4
    config.model.position = "rope"
    config.model.norm_placement = "pre"
    config.model.scale_embed = True
    config.data.name = f"help-en-{language}-bpe"
    config.data.seq_len = 40
    config.data.epochs = 100
    config.optim.name = "muon"
    config.optim.lr = 0.02
    config.optim.warmup = 0.05
    config.train.batch_size = 64
    config.train.steps = 3600
    config.run.eval_every = 500
    return config
