"""Words for pictures: tags and captions by models, and rules that make both usable."""
