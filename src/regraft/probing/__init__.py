"""Where to cut, before anything is trained: scores of layers, recommendations, learning curve."""
