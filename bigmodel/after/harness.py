"""lm-evaluation-harness on a run, through its own model interface. Imported only where it is asked for: it is an extra.

Gao et al., "The Language Model Evaluation Harness" (zenodo.org/records/12608602).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bigmodel.after import choices, evaluate
from bigmodel.errors import UsageError


class Model(LM):
    """A run that predicts text, with the tokenizer of its data."""

    def __init__(self, run: evaluate.Run, tokenizer: Any):
        super().__init__()
        self.run, self.tokenizer = run, tokenizer

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        pairs = [choices.encoded(self.tokenizer, *request.args) for request in requests]
        log_p_N, greedy_N = choices.log_likelihoods(self.run, pairs)
        return list(zip(log_p_N.tolist(), greedy_N.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        """Of each text as a whole, in windows as full as they can be, from the separator on."""
        found = []
        for request in requests:
            tokens, size = self.tokenizer.encode(request.args[0]), self.run.config.model.seq_len
            windows = get_rolling_token_windows(tokens, self.tokenizer.separator, size, 1)
            log_p_N, _ = choices.log_likelihoods(self.run, [make_disjoint_window(window) for window in windows])
            found.append(float(log_p_N.sum()))
        return found

    def generate_until(self, requests: Any) -> list[str]:
        raise UsageError("a task of lm-evaluation-harness asks for generated text: use `bigmodel generate`")


def evaluated(run: evaluate.Run, tokenizer: Any, tasks: list[str], shots: int, limit: int) -> dict[str, Any]:
    """Results by task. Tasks are the harness's names, or paths of its YAML files."""
    given = [str(Path(task).resolve()) if task.endswith(".yaml") else task for task in tasks]
    model = Model(run, tokenizer)
    try:
        found = lm_eval.simple_evaluate(model, tasks=given, num_fewshot=shots, limit=limit or None, bootstrap_iters=0)
    except (OSError, ValueError, KeyError) as e:  # no such task, or its data can't be downloaded
        raise UsageError(f"lm-evaluation-harness, {', '.join(tasks)}: {type(e).__name__}: {e}") from e
    return dict(found["results"])
