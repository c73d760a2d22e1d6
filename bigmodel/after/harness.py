"""lm-evaluation-harness on a run, through its own model interface. Imported only where it is asked for: it is an extra.

Gao et al., "The Language Model Evaluation Harness" (zenodo.org/records/12608602).
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import lm_eval
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bigmodel import tree
from bigmodel.after import choices, continuations, decode, evaluate
from bigmodel.after.generate import Sampling
from bigmodel.errors import UsageError
from bigmodel.ops import sharding

MOST_TOKENS = 256  # of an answer, where a task doesn't say


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
        """Greedily, or sampled where a task says so, until one of its stop strings."""
        found = []
        for number, request in enumerate(requests):
            text, asked = request.args
            stop = asked.get("until", ())
            sampled = asked.get("do_sample", False)
            settings = continuations.Settings(
                max_new_tokens=asked.get("max_gen_toks", MOST_TOKENS),
                how=Sampling(asked.get("temperature", 1.0) if sampled else 0.0, top_p=asked.get("top_p", 1.0)),
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
            )
            prompt = self.tokenizer.encode(text) or [self.tokenizer.separator]
            length = decode.room(self.run.config.model, [len(prompt)], settings.max_new_tokens, False)
            settings = dataclasses.replace(settings, max_new_tokens=length)
            (row,) = continuations.run(self.decoder, self.tokenizer, [(number, text, prompt)], settings)
            found.append(row["text"])
        return found

    @functools.cached_property
    def decoder(self) -> decode.Decoder:
        run, mesh = self.run, sharding.make_mesh(sharding.ALONE, jax.devices()[:1])
        put = decode.placing(run.family, mesh, run.config.model.dtype)
        params = tree.map_paths(put, run.variables["params"])
        ends = () if self.tokenizer.separator is None else (self.tokenizer.separator,)
        return decode.Decoder(run.family, run.config.model, params, mesh, ends)


def evaluated(run: evaluate.Run, tokenizer: Any, tasks: list[str], shots: int, limit: int) -> dict[str, Any]:
    """Results by task. Tasks are the harness's names, or paths of its YAML files."""
    given = [str(Path(task).resolve()) if task.endswith(".yaml") else task for task in tasks]
    model = Model(run, tokenizer)
    try:
        found = lm_eval.simple_evaluate(model, tasks=given, num_fewshot=shots, limit=limit or None, bootstrap_iters=0)
    except (OSError, ValueError, KeyError) as e:  # no such task, or its data can't be downloaded
        raise UsageError(f"lm-evaluation-harness, {', '.join(tasks)}: {type(e).__name__}: {e}") from e
    return dict(found["results"])
