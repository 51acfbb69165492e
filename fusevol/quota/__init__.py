"""Who says no: the ledger, fusevol's own accounting of a volume's space and inodes."""
