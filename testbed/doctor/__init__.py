"""What this host can carry, found by trying it: nothing here believes a version number."""
