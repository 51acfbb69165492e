"""The volume plugin of docker and podman: volumes of the pools, without objects of Kubernetes' kinds."""
