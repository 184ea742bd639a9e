"""The device: verifies, installs and serves models, offline if need be."""
