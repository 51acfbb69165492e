"""The keeper: the small process that forks one volume server per mount from a preloaded image."""
