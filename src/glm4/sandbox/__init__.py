"""What strangers' data or a model's code drives runs here: in bubblewrap, with limits, or not at all."""
