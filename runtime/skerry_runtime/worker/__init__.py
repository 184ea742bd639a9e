"""The processes that may die: they hold the engine and the model."""
