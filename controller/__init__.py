"""One domain's SDN application: meters, queues and flows from a program, read back; imports nothing of testbed."""
