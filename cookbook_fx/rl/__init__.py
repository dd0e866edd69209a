"""Reinforcement learning's data: episodes, the batch made of them, what a step learns from it."""
