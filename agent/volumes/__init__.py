"""From what a Pod, a claim or a call-out asks for to mounts at targets."""
