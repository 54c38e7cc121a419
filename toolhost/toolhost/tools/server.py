"""Defining a tool server: `ToolServer`, `@tool`, `bind`.

Nothing runs when a server is constructed or bound; `spawn` sends the frozen spec to a tool host, which constructs
the object there once. See `toolhost.hosting`.
"""
