"""A contrastive pair model: two convolutional towers tell which lower half of a digit belongs to which upper half.

InfoNCE both ways over the whole batch (Radford et al. 2021, arXiv:2103.00020, figure 3). B batch, S side, E embedding.
"""

import conv  # a neighbour of this file
import flax.linen as nn
import jax.numpy as jnp

from bigmodel.models import losses


def get_config():
    return dict(width=8, depth=1, side=8, num_classes=10)


finalize, rung = conv.finalize, conv.rung
RULES = (*conv.RULES, (r"^log_scale$", ()))


def spec(cfg):
    return {"picture": ((cfg.side, cfg.side, 1), "float32")}


def inputs(cfg, batch):
    return (batch["picture"],)


def decomposes(cfg):
    """Every pair is judged against all others of the batch."""
    return False


def flops(cfg):
    return 2 * (conv.flops(cfg) - 4.0 * cfg.width * cfg.num_classes) / 2


class Model(nn.Module):
    cfg: object

    @nn.compact
    def __call__(self, x_BSSC, train=False):
        """Similarities BB of upper and lower halves."""
        half = self.cfg.side // 2
        log_scale = self.param("log_scale", nn.initializers.constant(1.0), ())
        parts = {"left": x_BSSC[:, :half], "right": x_BSSC[:, half:]}
        towers = [Tower(self.cfg, name=name)(x, train) for name, x in parts.items()]
        upper_BE, lower_BE = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in towers)
        return jnp.exp(log_scale) * upper_BE @ lower_BE.T


class Tower(nn.Module):
    cfg: object

    @nn.compact
    def __call__(self, x_BSSC, train):
        return conv.Trunk(self.cfg, name="trunk")(x_BSSC, train)


def loss(model, variables, batch, rng, train):
    mutable = ["batch_stats"] if train else []
    scores_BB, state = model.apply(variables, batch["picture"], train, mutable=mutable)
    own_B, counts_B = jnp.arange(len(scores_BB)), batch["weight"] > 0
    scores_BB = jnp.where(counts_B[:, None] & counts_B, scores_BB, -1e9)  # padding is nobody's other half
    rows, metrics = losses.cross_entropy(scores_BB, own_B, batch["weight"])
    columns, _ = losses.cross_entropy(scores_BB.T, own_B, batch["weight"])
    metrics["accuracy"] = losses.accuracy(scores_BB, own_B, batch["weight"])
    return (rows + columns) / 2, (metrics, dict(state))
