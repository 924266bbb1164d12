"""From captions to the conditioning of a U-Net: text encoders, their states, and image sizes."""
