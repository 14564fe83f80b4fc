"""One generator function per command: a request and a session in; notes and rows on the way; a result at the end."""
