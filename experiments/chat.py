"""SmolLM2-135M learns to answer as in conversations of yours, by adapters of rank 8; what the assistant says counts.

    bigmodel prepare smollm2 --out=data/smollm2
    bigmodel prepare chats.jsonl --tokenizer=data/smollm2/tokenizer.json --out=data/chats
    bigmodel train --config=experiments/chat.py --config.train.init_from=data/smollm2

    bigmodel generate runs/<its id> --chat --prompt="..."

chats.jsonl has a row {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
or {"prompt": "...", "answer": "..."} for each conversation.
"""

from bigmodel import budget
from bigmodel.models import decoder


def get_config():
    config = budget.base("decoder", "tasks")
    shape = decoder.PUBLISHED["smollm2-135m"]["model"]
    config.model.update({key: value for key, value in shape.items() if key != "seq_len"})  # the data's
    config.data.name = "chats"
    config.data.seq_len = 256
    config.data.epochs = 3
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.0
    config.train.batch_size = 8
    config.train.tokens = 1000  # conversations seen
    config.train.lora_rank = 8
    return config
