"""The FUSE protocol spoken to the kernel directly: what libfuse, and so pyfuse3, does not offer."""
