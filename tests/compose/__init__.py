"""`docker compose up`: what can be seen of it without an engine, and a test for where there is one."""
