"""``skerry demo``: the whole journey of a model, told by real processes on this machine."""
