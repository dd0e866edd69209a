"""On-policy distillation: prompts, teachers, and what comes of them."""
