"""Small clusters, and a simulator of them without events, heaps or token clocks."""

import math

from staleness_grpo.pipeline.cluster import FINISH, LEARNER, Cluster, Engines
from staleness_grpo.pipeline.lengths import CONSTANT, LOGNORMAL, Lengths

ENGINE_FIELDS = ("count", "slots", "tokens_per_second", "slowdown")
LENGTH_FIELDS = ("distribution", "mean", "sigma", "correlation", "limit", "path")


def small_cluster(**fields) -> Cluster:
    """Returns a cluster of one engine; the fields of its parts may be given beside its own."""
    engines = dict(count=1, slots=4, tokens_per_second=1.0, slowdown=0.0)
    lengths = dict(distribution=CONSTANT, mean=10.0, sigma=0.8, correlation=0.0, limit=10_000)
    own = dict(
        num_groups=1,
        group_size=1,
        reward_seconds=0.0,
        step_seconds=5.0,
        publish_seconds=1.0,
        publish_blocks=LEARNER,
        in_flight=FINISH,
    )
    for name, value in fields.items():
        part = engines if name in ENGINE_FIELDS else lengths if name in LENGTH_FIELDS else own
        part[name] = value
    return Cluster(engines=Engines(**engines), lengths=Lengths(**lengths), **own)


def random_lengths(**fields) -> Cluster:
    """Returns a small cluster with lognormal lengths of a mean of 30 tokens."""
    return small_cluster(**dict(distribution=LOGNORMAL, mean=30.0) | fields)


def brute_force(cluster: Cluster, rule: str, max_lag: int, num_steps: int, seed: int) -> dict:
    """Simulates a pipeline by scanning all slots for the next event.

    Every response has its remaining tokens, which each interval lowers. It covers the rules
    bounded, ready_first, in_order and windowed, in-flight responses that finish under their
    weights, and publication that blocks the learner.

    Returns:
      `groups`: (number, version, start, ready, step or None) of each group; `steps`: (start, end,
      free) of each learner step.
    """
    n, g = cluster.num_groups, cluster.group_size
    draw = cluster.lengths.sampler(g, seed)
    engines = [[] for _ in range(cluster.engines.count)]  # [group, remaining tokens] of each
    groups, waiting, ready, steps = [], [], [], []
    now, version, published, num_discarded = 0.0, 0, 0, 0
    phase, until, began, ended = "wait", math.inf, 0.0, 0.0

    def fill():
        while any(len(engine) < cluster.engines.slots for engine in engines):
            if not waiting:
                if not (max_lag + published + 1) * n > len(groups) - num_discarded:
                    return
                number = len(groups)
                group = dict(number=number, version=published, start=now, ready=None, step=None)
                group["left"] = g
                groups.append(group)
                waiting.extend([group, float(length)] for length in draw(number))
            min(engines, key=len).append(waiting.pop(0))

    def pick():
        if rule == "in_order":
            batch = groups[version * n : (version + 1) * n]
            return batch if len(batch) == n and all(x in ready for x in batch) else None
        order = ready if rule == "ready_first" else sorted(ready, key=lambda x: x["version"])
        return order[:n] if len(order) >= n else None

    fill()
    while len(steps) < num_steps:
        if phase == "wait":
            if rule == "windowed":
                old = [x for x in ready if version - x["version"] > max_lag]
                num_discarded += len(old)
                ready = [x for x in ready if x not in old]
                if old:
                    fill()
            if (batch := pick()) is not None:
                for group in batch:
                    group["step"] = version
                    ready.remove(group)
                phase, began, until = "step", now, now + cluster.step_seconds
        rates = [cluster.engines.rate(len(engine)) if engine else 1.0 for engine in engines]
        times = [
            left / rate for rate, engine in zip(rates, engines, strict=True) for _, left in engine
        ]
        wait = min([until - now, *times])
        now += wait
        finished = False
        for rate, engine in zip(rates, engines, strict=True):
            for entry in engine:
                entry[1] -= rate * wait
            for entry in [entry for entry in engine if entry[1] < 1e-9]:
                engine.remove(entry)
                finished = True
                entry[0]["left"] -= 1
                if entry[0]["left"] == 0:
                    entry[0]["ready"] = now
                    ready.append(entry[0])
        if finished:
            fill()
        if now >= until - 1e-9:
            if phase == "step":
                version, ended = version + 1, now
                phase, until = "publish", now + cluster.publish_seconds
            else:
                published, phase, until = version, "wait", math.inf
                steps.append((began, ended, now))
                fill()
    keys = ("number", "version", "start", "ready", "step")
    return {"groups": [tuple(x[key] for key in keys) for x in groups], "steps": steps}
