"""The node agent: the control plane of one node. Everything here may import ``fusevol``; never the other way."""
