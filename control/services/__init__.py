"""The gRPC services of the admin API: proto messages in, proto messages out."""
