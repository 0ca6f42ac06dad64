"""Launches that only Python can execute. A runner knows nothing of attention: it gives text, numbers and arrays to a framework."""
