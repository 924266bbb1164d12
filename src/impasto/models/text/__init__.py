"""From captions to what a U-Net is called with: text encoders, their states, and sizes."""
