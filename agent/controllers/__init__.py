"""What keeps the objects and the world in step: pure decisions (binding, reclaim, provisioning) and their effects."""
