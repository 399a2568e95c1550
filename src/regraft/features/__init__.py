"""The frozen part, computed once: extraction, cache, readers, and the policy what is cached."""
