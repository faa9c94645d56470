"""What authz reserved in Valkey: settled when a usage event arrives, released when none ever will."""
