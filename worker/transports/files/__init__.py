"""Files as a transport: reading inputs, writing outputs that survive a kill."""
