"""The pipeline and the ways to start it: on a cluster, here, or as a compiled package."""
