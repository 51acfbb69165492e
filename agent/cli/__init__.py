"""The ``fusevol`` command: reads like kubectl, speaks to the agent over its unix socket."""
