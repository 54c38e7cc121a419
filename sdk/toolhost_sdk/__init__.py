"""The execution substrate of toolhost: commands, channels, endpoints. Knows neither MCP nor HTTP servers."""
