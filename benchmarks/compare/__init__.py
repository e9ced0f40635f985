"""The comparison of adapter methods, networks and prompts on equal terms."""
