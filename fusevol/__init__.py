"""fusevol: the library. What a volume is, where it lives and how it is served through FUSE."""

__version__ = "0.1.0"
