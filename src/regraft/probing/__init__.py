"""Where to cut, at what resolution, which backbone: judged by frozen features, before training."""
