"""The GRPO loop around TRL: rollouts, rewards by group, advantages, the update."""
