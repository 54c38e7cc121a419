"""MCP tool servers behind one ingress."""
