# mypy: ignore-errors
# The line above: TRL is installed in an environment of its own, where no type is checked.
"""Times a GRPO step of TRL at the shape of our benchmark.

    python -m venv VENV
    VENV/bin/pip install -r requirements-trl.txt
    VENV/bin/python trl_step.py --steps=20 --warm_up=3 [--threads=2]

The output is one JSON object. Its field `step_seconds` has one number per timed step.

- A step is all that `GRPOTrainer` does between the ends of two consecutive steps. That is the
  loading of prompts, their tokens, sampling, rewards, advantages, the update and metrics.
- Shape, tokenizer, and what all scripts do alike: `shape.py`.
- The script fails if an array of parameters is the same after training.
"""

import argparse
import json
import os
import tempfile
import time

import shape


def make_model():
    """Returns a Llama decoder of the benchmark's shape, with random float32 parameters."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=shape.VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=shape.PROMPT_LENGTH + shape.RESPONSE_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa"
    )


def share_of_small_tokens(completion_ids, **others):
    """Returns the share of each response's tokens that are below V / 2, as our benchmark does."""
    assert len(completion_ids) == shape.NUM_PROMPTS * shape.GROUP_SIZE, len(completion_ids)
    assert {len(tokens) for tokens in completion_ids} == {shape.RESPONSE_LENGTH}
    return [
        sum(token < shape.VOCAB_SIZE // 2 for token in tokens) / shape.RESPONSE_LENGTH
        for tokens in completion_ids
    ]


def make_trainer(num_steps: int, folder: str, callback):
    """Returns a trainer that takes `num_steps` steps. Each has its own random prompts."""
    import datasets
    import numpy as np
    import transformers
    import trl

    size = (num_steps * shape.NUM_PROMPTS, shape.PROMPT_LENGTH)
    numbers = np.random.default_rng(0).integers(shape.VOCAB_SIZE, size=size)
    prompts = [" ".join(map(str, row)) for row in numbers]
    tokenizer = shape.make_tokenizer()
    assert {len(tokens) for tokens in tokenizer(prompts)["input_ids"]} == {shape.PROMPT_LENGTH}
    trainer = trl.GRPOTrainer(
        model=make_model(),
        reward_funcs=share_of_small_tokens,
        args=trl.GRPOConfig(
            output_dir=folder,
            max_steps=num_steps,
            # A step samples once, and learns once from all responses together.
            per_device_train_batch_size=shape.NUM_PROMPTS * shape.GROUP_SIZE,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            num_iterations=1,
            num_generations=shape.GROUP_SIZE,
            max_completion_length=shape.RESPONSE_LENGTH,
            temperature=1.0,
            # The loss of our default config. Without a penalty TRL keeps no reference policy.
            loss_type="grpo",
            scale_rewards="group",
            beta=0.0,
            epsilon=0.2,
            # The kernel that updates all parameters in one call is TRL's default too.
            optim="adamw_torch_fused",
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            # TRL's defaults are bfloat16 and checkpointing. Our benchmark has neither.
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def measure(steps: int, warm_up: int, threads: int, folder: str) -> dict:
    """Trains for `warm_up + steps` steps, and returns the object that the script prints."""
    import torch
    import transformers
    import trl

    torch.set_num_threads(threads)
    step_ends = []

    class Clock(transformers.TrainerCallback):
        """Reads the time at the end of each step."""

        def on_step_end(self, *args, **others):
            step_ends.append(time.perf_counter())

    trainer = make_trainer(warm_up + steps, folder, Clock())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(before[name], parameter), f"{name} did not change"
    assert len(step_ends) == warm_up + steps, len(step_ends)
    timed = step_ends[warm_up - 1 :]
    return {
        "library": "trl",
        "version": trl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "step_seconds": [end - start for start, end in zip(timed, timed[1:], strict=False)],
        "num_parameters": sum(p.numel() for p in trainer.model.parameters()),
        "tokens_per_step": shape.NUM_PROMPTS * shape.GROUP_SIZE * shape.RESPONSE_LENGTH,
    }


def main() -> None:
    """Reads the flags, measures, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description="Times a GRPO step of TRL.")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warm_up", type=int, default=3, help="steps before them, at least 1")
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cpus, help="threads of an operation")
    flags = parser.parse_args()
    if flags.steps < 1 or flags.warm_up < 1 or flags.threads < 1:
        parser.error("give --steps, --warm_up and --threads of at least 1")
    with tempfile.TemporaryDirectory() as folder:
        # The libraries read these when they are imported.
        os.environ.update(HF_HOME=folder, HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
        print(json.dumps(measure(flags.steps, flags.warm_up, flags.threads, folder)), flush=True)


if __name__ == "__main__":
    main()
