"""One volume server: the process that answers the kernel's requests for one mounted volume."""
