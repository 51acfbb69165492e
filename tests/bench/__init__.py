"""``make bench``: fusevol beside the bare directory, bindfs and libfuse's passthrough_hp, in one run."""
