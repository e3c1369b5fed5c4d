"""The Open Inference Protocol, version 2 (REST), as `tritonclient.http` speaks it."""
