"""Two players: a generator draws digits, a critic tells them from real ones (Goodfellow et al. 2014, arXiv:1406.2661).

One loss, in which each player's term stops the gradient of the other's parameters; config.optim.groups gives each its
own optimizer. B batch, I pixels, Z noise.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.models import layers, losses

NOISE = 4


def get_config():
    return dict(width=16, depth=1, side=8, num_classes=10)


def finalize(cfg):
    pass


def rung(width, depth):
    return {"model.width": width, "model.depth": depth}


RULES = (
    (r"generator/first$", ("feature", "ffn")),
    (r"generator/last$", ("ffn", "output")),
    (r"critic/first$", ("feature", "ffn")),
    (r"critic/last$", ("ffn", "output")),
)


def spec(cfg):
    return {"picture": ((cfg.side, cfg.side, 1), "float32")}


def inputs(cfg, batch):
    return (batch["picture"], jnp.zeros((len(batch["picture"]), NOISE)))


def flops(cfg):
    return 2.0 * cfg.width * (NOISE + 3 * cfg.side**2 + 2)


class Player(nn.Module):
    width: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        n = x.shape[-1]
        h = nn.relu(x @ self.param("first", layers.normal(0.0, n), (n, self.width)))
        return h @ self.param("last", layers.normal(0.0, self.width), (self.width, self.outputs))


class Model(nn.Module):
    cfg: object

    def setup(self):
        self.generator = Player(self.cfg.width, self.cfg.side**2)
        self.critic = Player(self.cfg.width, 1)

    def __call__(self, picture, noise):
        drawn = nn.sigmoid(self.generator(noise))
        return drawn, self.critic(drawn)[:, 0], self.critic(picture.reshape(len(picture), -1))[:, 0]


def held(params, player):
    return {**params, player: jax.lax.stop_gradient(params[player])}


def loss(model, variables, batch, rng, train):
    keys_B = layers.example_keys(rng, layers.rows_of(batch))
    noise = jax.vmap(lambda key: jax.random.normal(key, (NOISE,)))(keys_B)
    params, weight = variables["params"], batch["weight"]

    def played(params):
        return model.apply({"params": params}, batch["picture"], noise)

    _, fake_B, real_B = played(held(params, "generator"))
    judged = jax.nn.softplus(fake_B) + jax.nn.softplus(-real_B)
    _, passed_B, _ = played(held(params, "critic"))
    metrics = {
        "loss": (jnp.sum(judged * weight), jnp.sum(weight)),
        "generator": (jnp.sum(jax.nn.softplus(-passed_B) * weight), jnp.sum(weight)),
    }
    return losses.mean(metrics["loss"]) + losses.mean(metrics["generator"]), (metrics, {})
