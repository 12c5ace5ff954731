"""A policy of one's own: a gated recurrent unit, whose cache is its state."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class GRU:
    """Reads one token after another. The hidden state [E] is all that it remembers."""

    vocab_size: int  # the task gives it
    width: int = 32  # E
    dtype: str = "float32"

    def init(self, key):
        E, V = self.width, self.vocab_size
        shapes = {"table": (V, 3 * E), "loop": (E, 3 * E), "readout": (E, V)}
        keys = dict(zip(shapes, jax.random.split(key, 3), strict=True))
        draw = jax.random.normal
        return {name: draw(keys[name], shapes[name], self.dtype) * E**-0.5 for name in shapes}

    def step(self, params, state, tokens):  # one more token [...] for each state [..., E]
        reset, keep, new = jnp.split(params["table"][tokens], 3, axis=-1)
        reset_h, keep_h, new_h = jnp.split(state @ params["loop"], 3, axis=-1)
        keep = jax.nn.sigmoid(keep + keep_h)
        return keep * state + (1 - keep) * jnp.tanh(new + jax.nn.sigmoid(reset + reset_h) * new_h)

    def states(self, params, state, tokens, mask):  # [..., T, E], after each token [..., T]
        def read(state, column):
            tokens, mask = column
            state = jnp.where(mask[..., None], self.step(params, state, tokens), state)
            return state, state  # padding has left the state as it was

        columns = jnp.moveaxis(tokens, -1, 0), jnp.moveaxis(mask, -1, 0)
        return jnp.moveaxis(jax.lax.scan(read, state, columns)[1], 0, -2)

    def unembed(self, params, hidden):
        return hidden @ params["readout"]

    def apply(self, params, tokens):
        zero = jnp.zeros((len(tokens), self.width), self.dtype)
        return self.unembed(params, self.states(params, zero, tokens, jnp.ones_like(tokens, bool)))

    def prefill(self, params, tokens, mask):
        zero = jnp.zeros((len(tokens), self.width), self.dtype)
        return (self.states(params, zero, tokens, mask)[:, -1],) * 2  # hidden state and prefix

    def empty_cache(self, num_prompts, group_size, length):
        return jnp.zeros((num_prompts, group_size, self.width), self.dtype)

    def decode(self, params, tokens, index, cache, prefix, prefix_mask):
        return (self.step(params, jnp.where(index == 0, prefix[:, None], cache), tokens),) * 2

    def response_hidden(self, params, prompts, mask, tokens):
        start = jnp.repeat(self.prefill(params, prompts, mask)[0][:, None], tokens.shape[1], 1)
        read = tokens[..., :-1]
        rest = self.states(params, start, read, jnp.ones_like(read, bool))
        return jnp.concatenate([start[:, :, None], rest], axis=2)
