"""Studies of methods and of attacks on public data, whose outcome is in docs/methods.md."""
