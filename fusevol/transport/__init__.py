"""How the kernel's requests reach :mod:`fusevol.fs`, and the mounts that carry them."""
