"""Real MCP clients driven against a running host, and what they need."""
