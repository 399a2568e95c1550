"""The network: backbones, the cut into a frozen and a trained part, heads, preprocessing."""
