"""How clients reach a model: one file a way."""
