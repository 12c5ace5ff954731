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
        shapes = {"table": (self.vocab_size, 3 * self.width), "loop": (self.width, 3 * self.width)}
        shapes["readout"] = (self.width, self.vocab_size)
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape, self.dtype) * self.width**-0.5
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def step(self, params, state, tokens):
        """Returns the states [..., E] after one more token [...]."""
        reset, update, new = jnp.split(params["table"][tokens], 3, axis=-1)
        reset_h, update_h, new_h = jnp.split(state @ params["loop"], 3, axis=-1)
        keep = jax.nn.sigmoid(update + update_h)
        return keep * state + (1 - keep) * jnp.tanh(new + jax.nn.sigmoid(reset + reset_h) * new_h)

    def states(self, params, start, tokens, mask=None):
        """Returns the states [..., T, E] after each of the tokens [..., T]."""
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask

        def one(state, column):  # padding leaves the state as it is
            state = jnp.where(column[1][..., None], self.step(params, state, column[0]), state)
            return state, state

        columns = jnp.moveaxis(tokens, -1, 0), jnp.moveaxis(jnp.asarray(mask), -1, 0)
        return jnp.moveaxis(jax.lax.scan(one, start, columns)[1], 0, -2)

    def unembed(self, params, hidden):
        return hidden @ params["readout"]

    def apply(self, params, tokens_BxT):
        start = self.empty_cache(len(tokens_BxT), 1, 0)[:, 0]
        return self.unembed(params, self.states(params, start, tokens_BxT))

    def prefill(self, params, tokens_NxP, mask_NxP):
        start = self.empty_cache(len(tokens_NxP), 1, 0)[:, 0]
        last = self.states(params, start, tokens_NxP, mask_NxP)[:, -1]
        return last, last

    def empty_cache(self, num_prompts, group_size, length):
        return jnp.zeros((num_prompts, group_size, self.width), self.dtype)

    def decode(self, params, tokens_NxG, index, cache, prefix, prefix_mask_NxP):
        state = self.step(params, jnp.where(index == 0, prefix[:, None], cache), tokens_NxG)
        return state, state

    def response_hidden(self, params, prompts_NxP, mask_NxP, tokens_NxGxR):
        last, _ = self.prefill(params, prompts_NxP, mask_NxP)
        start = jnp.broadcast_to(last[:, None], (*tokens_NxGxR.shape[:2], self.width))
        rest = self.states(params, start, tokens_NxGxR[..., :-1])
        return jnp.concatenate([start[:, :, None], rest], axis=2)
