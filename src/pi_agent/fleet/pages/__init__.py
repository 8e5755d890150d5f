"""The pages for operators: server-rendered, without JavaScript, everything from a device treated as text."""
