"""A transformer, its adapter, its training step and its sampler; knows nothing of chat or RL."""
