"""The wire between server and sites."""
