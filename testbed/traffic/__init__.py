"""Open-loop replay of bursty tenants: schedules made ahead of time, senders that keep to them, sinks that discard."""
