"""``make bench``: fusevol beside a bare directory and bindfs, in one run."""
