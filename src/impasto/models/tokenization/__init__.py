"""From a text to chunks of token ids: CLIP's vocabulary, emphasis, and the joining of chunks."""
