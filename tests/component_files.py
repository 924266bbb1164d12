"""The main files of a Diffusers folder of SD 1.x and 2.x."""

from impasto.models.families import SD1

COMPONENT_FILES = {part.name: part.file for part in SD1.components}
UNET_FILE, VAE_FILE, TEXT_ENCODER_FILE = COMPONENT_FILES.values()
