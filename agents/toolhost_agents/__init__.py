"""LLM call adapters. Reaches tools over MCP only."""
