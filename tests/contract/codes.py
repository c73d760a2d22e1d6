"""Units made of a finished run: k-means clusters of its features (as in HuBERT's second round), one a picture."""

import conv
import halves
import numpy as np
from sklearn.cluster import KMeans

from bigmodel import evaluate


def info(config):
    return halves.describe(config.data, config.run.data_dir)


def make(run, out):
    found = evaluate.restore(run, "")
    everything = [halves.Pictures(split).pictures for split in ("validation", "train")]
    trunk = {"params": found.variables["params"]["trunk"], "batch_stats": found.variables["batch_stats"]["trunk"]}
    features = conv.Trunk(found.config.model).apply(trunk, np.concatenate(everything), False)
    units = KMeans(10, n_init=1, random_state=0).fit_predict(np.asarray(features))
    np.save(f"{out}/units.npy", units.astype(np.int32))
