"""From texts to labels: the model folder, tokens, engine, caches, decisions."""
