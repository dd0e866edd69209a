"""Three stages: conversations, a model of preferences, and reinforcement by its opinion."""
