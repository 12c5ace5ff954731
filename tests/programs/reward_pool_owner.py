"""Owns a reward pool until it is killed, and prints the process ids of the workers on one line.

python -m tests.programs.reward_pool_owner
"""

import multiprocessing
import time

from staleness_grpo.tasks.verifiers import exact
from staleness_grpo.training.rewards import RewardPool

if __name__ == "__main__":
    pool = RewardPool(exact, num_workers=1, time_limit=60.0)
    pool.submit(["a"], ["a"]).result()
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
