"""Tasks: prompts by index, rewards on the host."""
