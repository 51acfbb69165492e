"""What this machine has of what fusevol can use, found by trying it: ``fusevol doctor``. No agent is asked."""
