"""One file per command. Each imports what it needs of `exporters` and `server` when it runs."""
