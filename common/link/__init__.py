"""The wire between server and sites: one gRPC stream a site over TLS 1.3, both ends certified."""
