"""Tag images with SigLIP and SigLIP 2 on Ray Serve."""

__version__ = "0.1.0"
