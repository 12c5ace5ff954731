"""Kills asynchronous runs again and again, and replays each of them in the synchronous loop.

    python -m experiments.async_proof --workdir=DIR --config.proof.stories=FOLDER

FOLDER: config.json, model.safetensors and tokenizer.json of the Llama with 260k parameters, from
the tinyllamas family (MIT license).

Hardware: 2 CPU cores, half an hour or more. In summary.json, `replayed_to_the_byte` must be `runs`.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import async_train


def get_config() -> ConfigDict:
    """Returns small trainings of 200 learner steps, four of sums and four of stories."""
    config = async_train.get_config()
    config.update(dict(steps=200, num_prompts=8, group_size=4, eval_every=20))
    config.sampler.batch_prompts = 2
    config.checkpoint.save_every = 20
    config.warm_start.steps = 300
    config.proof = ConfigDict(
        dict(
            kills=4,  # kills of each run, at random moments
            stories=config_dict.placeholder(str),  # model folder for the runs on stories
            workers=1,  # runs that are made at the same time
            seed=0,  # seeds the moments of the kills
        )
    )
    return config
