"""Words for images: tags and captions by models, and rules that make both usable."""
