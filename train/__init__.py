"""Training: warm start (`sft`), GRPO with a length penalty (`grpo`), and their data and plans."""
